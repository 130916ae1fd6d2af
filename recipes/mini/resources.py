"""Files inside Qt's binary resource files (``.rcc``), which Qt's own tool writes but doesn't unpack."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_ZLIB = 1
_FOLDER = 2
_ZSTD = 4


def resource_files(archive: bytes) -> dict[str, bytes]:
    """All files of a resource file by their path in it.

    Raises:
        ValueError: the bytes are no resource file, or a file in it is compressed in another way than zlib's.
    """
    if archive[:4] != b"qres":
        raise ValueError("this is no Qt resource file: it doesn't begin with 'qres'")
    version, tree, contents, names = struct.unpack_from(">4I", archive, 4)
    node_bytes = 22 if version >= 2 else 14

    def text(start: int) -> str:
        (letters,) = struct.unpack_from(">H", archive, start)
        return archive[start + 6 : start + 6 + 2 * letters].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name_at, flags = struct.unpack_from(">IH", archive, tree + node * node_bytes)
        path = folder + (text(names + name_at) if node else "")
        if flags & _FOLDER:
            count, first = struct.unpack_from(">2I", archive, tree + node * node_bytes + 6)
            for child in range(first, first + count):
                yield from walk(child, f"{path}/" if node else "")
            return
        if flags & _ZSTD:
            raise ValueError(f"{path} is compressed with zstd, which is not read here")
        (content_at,) = struct.unpack_from(">I", archive, tree + node * node_bytes + 10)
        start = contents + content_at
        (size,) = struct.unpack_from(">I", archive, start)
        stored = archive[start + 4 : start + 4 + size]
        yield path, zlib.decompress(stored[4:]) if flags & _ZLIB else stored

    return dict(walk(0, ""))
