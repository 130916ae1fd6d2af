"""The split of real photographs: free pictures from Debian packages and the samples that ship, asked about by hand."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flowcut.tasks import TaskQuestion, TaskScene, TaskSplit, write_split

from .resources import resource_files
from .scene import GRID, SIDE
from .workspace import Workspace

QUESTIONS = Path(__file__).with_name("photos.json")
"""Questions and answers by picture, written by hand in front of the middle squares."""

REPOSITORY = Path(__file__).parents[2]
PICTURES = REPOSITORY / "src/flowcut/tasks/data/photo-v2.json"
"""Where every picture is from, its author and its licence; ships with the package, as the licences ask for."""

QUALITY = 88
"""WebP quality of the stored pictures."""


@dataclass(frozen=True)
class Photograph:
    """Where a picture is from.

    Attributes:
        package: the Debian package, or "" for this repository.
        file: the path in it; behind a colon the path in that resource file.
        licence: its SPDX name, or "public domain".
        author: who made it.
        source: its page, or "".
        sha256: of the file, so that the questions are about this very picture.
    """

    package: str
    file: str
    licence: str
    author: str
    source: str
    sha256: str

    def read(self, workspace: Workspace) -> bytes:
        """The file's bytes.

        Raises:
            ValueError: the package holds another picture under this name.
        """
        path, _, inner = self.file.partition(":")
        outer = (workspace.unpacked / self.package if self.package else REPOSITORY) / path
        stored = _resources(outer)[inner] if inner else outer.read_bytes()
        if hashlib.sha256(stored).hexdigest() != self.sha256:
            raise ValueError(f"{outer} has changed since the questions about {self.file} were written")
        return stored


def photographs() -> dict[str, Photograph]:
    """All pictures by their names in the split."""
    listed = json.loads(PICTURES.read_text(encoding="utf-8"))
    return {name: Photograph(**entry) for name, entry in listed.items()}


def photo_packages() -> tuple[str, ...]:
    """The Debian packages that the pictures are from."""
    return tuple(sorted({photograph.package for photograph in photographs().values()} - {""}))


def pack_photos(name: str, workspace: Workspace, target: Path) -> TaskSplit:
    """Write the photographs' middle squares and their questions into one file.

    No masks: nobody has marked which patches the questions are about, so that the oracle means nothing here.

    Args:
        name: the split's name with its version.
        workspace: where the packages are unpacked.
        target: the .zip file to write.

    Raises:
        ValueError: a package holds another picture than the questions were written about.
    """
    asked = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    scenes = []
    for picture, photograph in sorted(photographs().items()):
        encoded = _square(photograph.read(workspace))
        questions = tuple(TaskQuestion(task, text, answer) for task, text, answer in asked[picture])
        scenes.append(TaskScene(f"{picture}.webp", encoded, (), np.zeros((0, GRID, GRID), np.bool_), questions))
    split = TaskSplit(name, tuple(scenes))
    write_split(split, target)
    return split


def _square(stored: bytes) -> bytes:
    with Image.open(io.BytesIO(stored)) as picture:
        square = ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    square.save(encoded, "WEBP", quality=QUALITY, method=6)
    return encoded.getvalue()


@cache
def _resources(path: Path) -> dict[str, bytes]:
    return resource_files(path.read_bytes())
