"""Where pictures and videos of training samples lie: in a folder, or in shards in webdataset's format."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image

from ..inputs.clips import Clip, load_clip
from ..inputs.files import path_in
from ..inputs.pictures import image_size, load_image


class MediaStore(Protocol):
    """Pictures and videos by name."""

    def has(self, name: str) -> bool:
        """Whether there is such a file; ``ValueError`` where the name leads out of the folder."""

    def picture(self, name: str) -> Image.Image:
        """A picture, RGB; ``ValueError`` or ``OSError`` where it cannot be read."""

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of a picture, from its header; the same errors."""

    def clip(self, name: str, frames: int) -> Clip:
        """Frames of a video; the same errors."""


class FileStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def has(self, name: str) -> bool:
        return path_in(self.folder, name).is_file()

    def picture(self, name: str) -> Image.Image:
        return load_image(path_in(self.folder, name))

    def size(self, name: str) -> tuple[int, int]:
        return image_size(path_in(self.folder, name))

    def clip(self, name: str, frames: int) -> Clip:
        return load_clip(path_in(self.folder, name), frames)


class ShardStore:
    """Tar files whose members that share a name but for its ending belong together.

    Their headers are read once; after that any member is found at its place, so that the order of training does not
    depend on that of the shards, and a run goes on at the exact sample.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = tuple(shards)
        self._places: dict[str, tuple[int, int, int]] = {}
        for number, shard in enumerate(self.shards):
            try:
                with tarfile.open(shard) as archive:
                    for member in archive:
                        if member.isfile():
                            self._places[member.name] = (number, member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(f"{shard} is not a tar file that can be read: {error}.") from error

    def __str__(self) -> str:
        return f"{len(self.shards)} shards"

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Key and content of every ``.json`` member; a picture beside it belongs to it if the JSON names none."""
        beside: dict[str, list[str]] = {}
        for name in self._places:
            path = PurePosixPath(name)
            beside.setdefault(str(path.with_suffix("")), []).append(name)
        for name in self._places:
            path = PurePosixPath(name)
            if path.suffix != ".json":
                continue
            key = str(path.with_suffix(""))
            try:
                told = json.loads(self._read(name))
            except ValueError:
                told = None
            others = [other for other in beside[key] if other != name]
            if isinstance(told, dict) and not told.keys() & {"image", "video"} and others:
                told["image"] = others
            yield key, told

    def has(self, name: str) -> bool:
        return name in self._places

    def picture(self, name: str) -> Image.Image:
        return load_image(io.BytesIO(self._read(name)), name)

    def size(self, name: str) -> tuple[int, int]:
        return image_size(io.BytesIO(self._read(name)), name)

    def clip(self, name: str, frames: int) -> Clip:
        raise ValueError(f"{name}: videos are read from folders, not from shards; unpack them and set data.pictures")

    def _read(self, name: str) -> bytes:
        number, offset, size = self._places[name]
        with self.shards[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)


class BlankStore:
    """A grey picture under any name."""

    side = 112

    def has(self, name: str) -> bool:
        return True

    def picture(self, name: str) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), "grey")

    def size(self, name: str) -> tuple[int, int]:
        return self.side, self.side

    def clip(self, name: str, frames: int) -> Clip:
        raise ValueError(f"{name}: there is no blank video")
