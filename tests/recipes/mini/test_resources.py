"""Qt's resource files are read as Qt's own tool writes them."""

from __future__ import annotations

import base64

import pytest

from recipes.mini.resources import resource_files

ZLIB = (
    "cXJlcwAAAAMAAACVAAAAGAAAAEMAAAABAAAACGFzIGl0IGlzAAAAGwAAAZB4nEtMT8zMU0jMS1FIHGUNAhYASNyJ+QADAABocABh"
    "AHAAcAAJCAG1tABwAGwAYQBpAG4ALgB0AHgAdAADAAB2RQBvAG4AZQADAAB73wB0AHcAbwAIBkpVlABsAG8AbgBnAC4AdAB4AHQA"
    "AAAAAAIAAAABAAAAAQAAAAAAAAAAAAAAAAACAAAAAgAAAAIAAAAAAAAAAAAAACQAAgAAAAEAAAAEAAAAAAAAAAAAAAAMAAAAAAAB"
    "AAAAAAAAAaIaxXe1AAAAMAACAAAAAQAAAAUAAAAAAAAAAAAAADwAAQAAAAEAAAAMAAABohrFeaE="
)
"""`rcc --binary --compress-algo zlib` of Qt 6.4 on two files, of which it compressed the longer one."""


def test_files_are_found_with_their_folders() -> None:
    assert resource_files(base64.b64decode(ZLIB)) == {
        "app/plain.txt": b"as it is",
        "app/one/two/long.txt": b"again and " * 40,
    }


def test_what_cannot_be_read_is_refused() -> None:
    archive = bytearray(base64.b64decode(ZLIB))
    flags = len(archive) - 22 + 4  # of the last node: name, flags, country, language, content, time
    assert archive[flags : flags + 2] == b"\0\1"
    archive[flags + 1] = 4
    with pytest.raises(ValueError, match=r"app/one/two/long\.txt is compressed with zstd"):
        resource_files(bytes(archive))
    with pytest.raises(ValueError, match="no Qt resource file"):
        resource_files(b"PK\3\4")
