"""Pixel shuffle: a square of patches becomes one visual token, its patches side by side in the channels."""

from __future__ import annotations

from typing import Any

import torch

from .base import ImageLayout


def shuffled_layout(shuffle: Any, numbers_shape: tuple[int, ...], grid: tuple[int, int], scale: float) -> ImageLayout:
    """The layout of an image whose patches are joined by ``shuffle``.

    Args:
        shuffle: the model's own pixel shuffle, given features and ``scale``.
        numbers_shape: shape in which it takes the features of one image with a single channel.
        grid: patches, (height, width).
        scale: its factor.
    """
    # Applied to patch numbers instead of features, it tells which patches make up every group, and in which order.
    numbers = torch.arange(grid[0] * grid[1]).reshape(numbers_shape)
    shuffled = shuffle(numbers, scale)
    order = shuffled.reshape(-1, shuffled.shape[-1])
    side = round(order.shape[1] ** 0.5)
    return ImageLayout(1, (grid[0] // side, grid[1] // side), torch.arange(len(order)), complete=True, order=order)
