"""Towers that take pictures of different sizes as the rows of a batch, filled up to one length.

Where a row's patches stand is told by their shapes (SigLIP 2, in LFM2-VL) or by their places (Gemma 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def read_shaped(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with rows of patches and ``spatial_shapes`` ``[images, 2]``."""
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    shapes: Tensor = kwargs["spatial_shapes"]
    counts = shapes.prod(dim=1).tolist()
    return torch.nn.functional.pad(shapes, (1, 0), value=1), [row[:n] for row, n in zip(pixels, counts, strict=True)]


def rows_of_shaped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Where the patches of such rows stand: in front of the filling, line by line."""
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    counts: Tensor = kwargs["spatial_shapes"].prod(dim=1).to(pixels.device)
    return (torch.arange(pixels.shape[1], device=pixels.device)[None] < counts[:, None]).flatten().nonzero()[:, 0]


def read_placed(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with rows of patches and ``pixel_position_ids``, (x, y) or -1."""
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    places: Tensor = args[1] if len(args) > 1 else kwargs["pixel_position_ids"]
    sides = places.amax(dim=1).flip(1) + 1
    real = (places >= 0).all(dim=-1)
    return torch.nn.functional.pad(sides, (1, 0), value=1), [row[own] for row, own in zip(pixels, real, strict=True)]


def rows_of_placed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Where the patches of such rows stand, line by line of their picture."""
    places: Tensor = args[1] if len(args) > 1 else kwargs["pixel_position_ids"]
    across, down = places.unbind(dim=-1)
    numbers = (down * (places.amax() + 1) + across).masked_fill((places < 0).any(dim=-1), torch.iinfo(torch.int64).max)
    order = numbers.argsort(dim=1)
    order = order + torch.arange(len(places), device=places.device)[:, None] * places.shape[1]
    return order[numbers.sort(dim=1).values < torch.iinfo(torch.int64).max]
