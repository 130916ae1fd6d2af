"""Pictures from files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def load_image(path: str | Path) -> Image.Image:
    """A picture as RGB, turned upright where its camera said so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, or a broken one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No image found at {str(path)!r}.")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image in a format that can be read.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is a broken image: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first sentence-bearing line of an error's message, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
