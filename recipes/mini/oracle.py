"""Which patches a question is about, by the renderer's own masks: the instrument that checks the model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    chosen: list[int] = []
    if about:
        open_items = [np.flatnonzero(touched[index].reshape(-1)) for index in about]
        room = budget
        for number, patches in enumerate(sorted(open_items, key=len)):
            share = room // (len(open_items) - number)
            picked = patches if len(patches) <= share else patches[_spread(len(patches), share)]
            chosen += [int(patch) for patch in picked if int(patch) not in chosen]
            room = budget - len(chosen)
    if fill:
        others = np.setdiff1d(np.arange(_PATCHES), chosen)
        count = min(budget - len(chosen), len(others))
        chosen += [int(patch) for patch in random.permutation(others)[:count]]
    return torch.tensor(sorted(chosen), dtype=torch.long)


def remove_only(touched: Masks, about: tuple[int, ...]) -> Tensor:
    """Sorted indices of all patches in which nothing is visible that the question is about."""
    return torch.where(~asked_about(touched, about))[0]


def _spread(length: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, length - 1, max(count, 0)).round().astype(np.int64)
