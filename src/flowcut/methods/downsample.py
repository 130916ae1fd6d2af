"""Downsample: a control. A smaller picture with as many tokens (VTC-Bench, arXiv 2510.07143, asks for it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Method


@dataclass(frozen=True)
class Downsample(Method):
    """The pixels are scaled down in front of the tower, which interpolates its position embeddings, and nothing is cut.

    They are those of the model's own processor, cropped and normalised. Scaling them gives what the processor gives of
    the cropped picture when it is asked for the smaller size, up to the processor's rounding to 8 bits.

    The small picture has the patch grid with the picture's proportions that comes closest to the budget without going
    over it: 8 x 8 for 64, but 11 x 11 = 121 for 128. ``handle.trace.images[i].kept`` then holds, of the full grid, the
    patches at the centres of the small one's.
    """

    name: ClassVar[str] = "downsample"
    summary: ClassVar[str] = "a control: a smaller picture with about as many tokens"
    stage: ClassVar[str] = "in front of the tower"
    shrinks_picture: ClassVar[bool] = True
