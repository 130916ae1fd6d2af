"""Pictures from files, as 8-bit RGB."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .files import check_file

WHITE_IS_ZERO = 0
PHOTOMETRIC, BITS, SAMPLE_FORMAT = 262, 258, 339
"""Tags of a TIFF file."""
ORIENTATION, LYING = 274, (5, 6, 7, 8)
"""The tag in which a camera says how it was held, and its values for a picture that lies on its side."""


def load_image(source: str | Path | BytesIO, name: str | None = None) -> Image.Image:
    """A picture as 8-bit RGB, turned upright where its camera said so.

    What is transparent becomes white. Grey pictures of more than 8 bits (16 bits, int32, float) are brought to 8 bits
    by their own range: their lowest value becomes 0, their highest 255, and a ``UserWarning`` names both. Of a file
    with several pictures, the first is taken.

    Args:
        source: a file in any format that Pillow reads, or its bytes, with at most twice ``PIL.Image.MAX_IMAGE_PIXELS``
            pixels.
        name: what messages call it; by default the path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, a broken one or one that is too large; or a picture of more than 8 bits
            has no range: its values are all equal, NaN or infinite.
        PermissionError: it may not be read.
    """
    name = str(source) if name is None else name
    with readable(source, name) as image:
        upright = ImageOps.exif_transpose(image)
        tags = dict(getattr(image, "tag_v2", {}))
    if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
        return to_8_bits(upright, tags, name).convert("RGB")
    try:
        if upright.mode.lower() in ("rgba", "la", "pa") or "transparency" in upright.info:
            return over_white(upright)
        return upright.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has colours of a kind that cannot be read ({upright.mode}).") from error


def image_size(source: str | Path | BytesIO, name: str | None = None) -> tuple[int, int]:
    """Height and width of a picture that :func:`load_image` would read, from its header; the same errors."""
    with readable(source, str(source) if name is None else name) as image:
        # Asking a PNG that has no such tag for it reads the whole picture.
        tags = image.getexif() if "exif" in image.info or image.format == "TIFF" else {}
        lies = tags.get(ORIENTATION, 1) in LYING
        return (image.width, image.height) if lies else (image.height, image.width)


@contextmanager
def readable(source: str | Path | BytesIO, name: str | None = None) -> Iterator[Image.Image]:
    """The picture in a file while the block runs, as Pillow opens it; its pixels are read inside the block.

    Args:
        source: a file, or its bytes.
        name: what messages call it; by default the path.

    Raises:
        FileNotFoundError, ValueError, PermissionError: see :func:`load_image`.
    """
    name = str(source) if name is None else name
    if not isinstance(source, BytesIO):
        check_file(source, "image")
    try:
        # Between Pillow's warning and its limit, pictures are large, but read as any other.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                yield image
    except PermissionError as error:
        raise PermissionError(f"{name} may not be read: permission denied.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image in a format that can be read.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {too_large(error)}") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is a broken image: {first_line(error)}") from error


def over_white(image: Image.Image) -> Image.Image:
    """A picture with transparency, laid over white, as viewers show it."""
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def to_8_bits(image: Image.Image, tags: dict[int, object], path: str | Path) -> Image.Image:
    """A grey picture of more than 8 bits, from its lowest value (0) to its highest (255).

    Args:
        image: of mode ``I``, ``F`` or ``I;16...``.
        tags: of its TIFF file, where it comes from one.
        path: for the messages.

    Raises:
        ValueError: its values have no range.
    """
    values = np.asarray(image)
    if tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow has no mode of its own for them
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{path} holds NaN or infinite values, so it has no range that could be shown as a picture.")
    if low == high:
        raise ValueError(f"{path} holds the value {low:g} alone, so it has no range that could be shown as a picture.")
    values = (values - low) * (255.0 / (high - low))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 255.0 - values
    warnings.warn(
        f"{path} has more than 8 bits: its own range, {low:g} to {high:g}, was brought to 0 to 255.", stacklevel=3
    )
    return Image.fromarray(values.round().astype(np.uint8))


def too_large(error: BaseException) -> str:
    """Pillow's refusal, in numbers."""
    pixels = re.search(r"\d+", str(error))
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    has = f"it has {int(pixels.group()):,} pixels, " if pixels else ""
    return (
        f"{has}at most {limit:,} are read (such as {math.isqrt(limit):,} x {math.isqrt(limit):,}). Scale it down first."
    )


def first_line(error: BaseException) -> str:
    """The first sentence-bearing line of an error's message, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
