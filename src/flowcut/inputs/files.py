"""Where a path leads, asked before anything opens it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PureWindowsPath

ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a web address; ``Path`` leaves only one slash of it. A drive of Windows has one letter."""


def check_file(path: str | Path, kind: str) -> None:
    """Refuse what is not a file with something in it.

    Args:
        path: as the user gave it.
        kind: ``"image"`` or ``"video"``, for the message.

    Raises:
        FileNotFoundError: there is nothing, or a folder.
        ValueError: a web address, a pipe or a device, or an empty file.
    """
    place = Path(path)
    if place.is_file():
        if place.stat().st_size == 0:
            raise ValueError(f"{path} is empty: a file of 0 bytes holds no {kind}.")
        return
    if ADDRESS.match(str(path)):
        raise ValueError(f"{path} is a web address. Download the {kind} first, then give the path of the file.")
    if place.is_dir():
        raise FileNotFoundError(f"No {kind} found at {str(path)!r}: it is a folder. Give the path of a file in it.")
    if place.exists():
        raise ValueError(f"{path} is a pipe or a device. Save the {kind} to a file first, then give its path.")
    raise FileNotFoundError(f"No {kind} found at {str(path)!r}.")


def path_in(folder: Path, name: str) -> Path:
    """The picture or video that a file of questions or samples names, inside the folder of its pictures.

    Links inside the folder are followed: whoever made the folder made them.

    Raises:
        ValueError: the name leads out of the folder.
    """
    plain = posixpath.normpath(name)
    foreign = PureWindowsPath(name)
    leads_out = plain.startswith(("/", "../")) or plain in ("", ".", "..") or "\0" in name
    if leads_out or foreign.drive or foreign.root or (".." in foreign.parts and "\\" in name):
        raise ValueError(f"{name!r} leads out of the images folder, so it was not opened.")
    return folder / plain
