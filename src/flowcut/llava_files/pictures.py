"""The picture of a question: from the images folder or from base64, as LLaVA opens it."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image

from ..inputs.clips import Clip, is_video, load_clip
from ..inputs.files import path_in
from ..inputs.pictures import readable
from .questions import Question


def visual_of(question: Question, folder: Path | None) -> Image.Image | Clip | None:
    """What is asked about: a picture as 8-bit RGB, the frames of a video, or nothing.

    As in LLaVA, a picture is taken as it is stored: not turned upright by its EXIF entry, transparency dropped.

    Args:
        question: with its picture's name or its picture.
        folder: where the pictures lie.

    Raises:
        OSError, ValueError: there is no such picture, or it cannot be read; names it.
    """
    if question.encoded is not None:
        name = f"the picture of {question.name}"
        try:
            data = base64.b64decode(question.encoded)
        except binascii.Error as error:
            raise ValueError(f"{name} is not base64: {error}.") from error
        with readable(io.BytesIO(data), name) as image:
            return image.convert("RGB")
    if question.visual is None:
        return None
    if folder is None:
        raise ValueError(f"{question.visual} lies in a folder that was not given (--images).")
    path = path_in(folder, question.visual)
    if is_video(path):
        return load_clip(path)
    with readable(path) as image:
        return image.convert("RGB")


def squared(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """A picture in the middle of a square, as LLaVA-1.5 was trained to see it.

    Args:
        image: RGB.
        mean: the image processor's, in 0 to 1; the colour around the picture.
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
