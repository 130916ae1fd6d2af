"""Pictures and clips that somebody sends: limited in size, read once, and taken off the disk."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..inputs.clips import SUFFIXES, is_video, load_clip
from ..inputs.pictures import image_size, load_image
from .answering import Visual

MEGABYTES = 20
MEGAPIXELS = 40
FRAMES = 8
LONGEST_SIDE = 2048
"""Larger pictures are scaled down to it, so that a page that is left open holds little memory."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
KINDS = (*PICTURES, *SUFFIXES)


def read_upload(path: str | Path, megabytes: float = MEGABYTES) -> Visual:
    """A picture as RGB, or the frames of a clip. The file is removed, whether it could be read or not.

    Raises:
        ValueError: it is too large, of no kind in :data:`KINDS`, or broken.
        FlowCutError: it is a clip, and PyAV is not installed.
    """
    file = Path(path)
    try:
        return opened(file, megabytes)
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error
    finally:
        file.unlink(missing_ok=True)


def opened(file: Path, megabytes: float) -> Visual:
    """What :func:`read_upload` reads."""
    if file.suffix.lower() not in KINDS:
        raise ValueError(f"{file.name} is neither a picture nor a clip. Send one of {', '.join(KINDS)}.")
    size = file.stat().st_size / 2**20
    if size > megabytes:
        raise ValueError(f"{file.name} has {size:.1f} MB; at most {megabytes:g} MB are taken.")
    if is_video(file):
        return load_clip(file, FRAMES)
    height, width = image_size(file)
    if height * width > MEGAPIXELS * 10**6:
        raise ValueError(
            f"{file.name} has {height * width / 1e6:.0f} million pixels; at most {MEGAPIXELS} million are taken. "
            "Scale it down first."
        )
    picture: Image.Image = load_image(file)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture
