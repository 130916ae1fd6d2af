"""Which patches a question is about, by the renderer's own masks: the instrument that checks the model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcut.tasks.oracle import asked_patches

from .scene import GRID

Masks = NDArray[np.bool_]
"""[items, 24, 24]: the patches in which each item is visible."""

_PATCHES = GRID * GRID


def asked_about(touched: Masks, about: tuple[int, ...]) -> Tensor:
    """[576] bool: the patches in which an item that the question is about is visible."""
    if not about:
        return torch.zeros(_PATCHES, dtype=torch.bool)
    return torch.from_numpy(touched[list(about)].any(axis=0).reshape(-1))


def keep_only(
    touched: Masks, about: tuple[int, ...], budget: int, random: np.random.Generator, *, fill: bool
) -> Tensor:
    """Sorted patch indices, at most `budget`: what the question is about, then random others if `fill`.

    Where the items have more patches than the budget, each gets the same share, spread over it evenly.
    """
    return torch.tensor(asked_patches(touched, about, budget, random, fill=fill), dtype=torch.long)


def remove_only(touched: Masks, about: tuple[int, ...]) -> Tensor:
    """Sorted indices of all patches in which nothing is visible that the question is about."""
    return torch.where(~asked_about(touched, about))[0]
