"""Loads what scenes are made of: cut-outs, backgrounds and fonts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from .vocabulary import Noun
from .workspace import Workspace

Split = Literal["train", "test", "new", "validation"]

CUTOUT_SIDE = 420
"""Longest side, in pixels, at which cut-outs are kept in memory."""

FONT_PATTERNS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "LiberationSans-Bold.ttf",
    "LiberationSerif-Bold.ttf", "LiberationMono-Bold.ttf", "Lato-Regular.ttf", "Lato-Black.ttf",
    "Roboto-Medium.ttf", "RobotoCondensed-Bold.ttf",
)  # fmt: skip
"""File names of the fonts, searched below the downloaded packages."""


class Material:
    """Pictures and fonts of one workspace, decoded once.

    Args:
        workspace: a workspace after `fetch`.

    Raises:
        FileNotFoundError: the backgrounds, or all of the fonts, are missing: run `fetch` first.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._stamps = workspace.stamps
        backgrounds = sorted(workspace.backgrounds.glob("*.jpg"))
        fonts = [path for name in FONT_PATTERNS for path in sorted(workspace.fonts.rglob(name))[:1]]
        if not backgrounds or not fonts:
            raise FileNotFoundError(f"no backgrounds or fonts below {workspace.root}: run the fetch command")
        self._backgrounds = {
            "train": [path for index, path in enumerate(backgrounds) if index % 7],
            "test": [path for index, path in enumerate(backgrounds) if index % 7 == 0],
        }
        self._fonts = fonts

    def cutout(self, noun: Noun, split: Split, random: np.random.Generator) -> Image.Image:
        """An RGBA cut-out of the noun, trimmed to what is visible, at most 420 px long.

        The split "new" shows held-out cut-outs where the noun has some.
        """
        choices = noun.held_out if split == "new" and noun.held_out else noun.cutouts
        return _read_cutout(self._stamps / f"{choices[int(random.integers(len(choices)))]}.png").copy()

    def photograph(self, split: Split, random: np.random.Generator) -> Image.Image:
        """A background photograph, RGB, at least 336 px on its short side; "test" and "new" have their own ones."""
        choices = self._backgrounds["train" if split in ("train", "validation") else "test"]
        return _read_background(choices[int(random.integers(len(choices)))])

    def font(self, size: int, random: np.random.Generator) -> ImageFont.FreeTypeFont:
        """One of the fonts at a height in pixels."""
        return ImageFont.truetype(self._fonts[int(random.integers(len(self._fonts)))], size)


@lru_cache(maxsize=512)
def _read_cutout(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        image = picture.convert("RGBA")
    alpha: NDArray[np.uint8] = np.asarray(image)[..., 3]
    rows, columns = np.where((alpha > 40).any(axis=1))[0], np.where((alpha > 40).any(axis=0))[0]
    image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = CUTOUT_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=256)
def _read_background(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
