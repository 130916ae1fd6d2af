"""A smaller picture in front of the vision tower, instead of a cut inside it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...models.base import ModelParts, VisionTower
from .tiles import TilePlan

INTERPOLATE = "interpolate_pos_encoding"
"""The argument with which towers of transformers are asked to fit their position embeddings to a picture."""

ALWAYS = ("dinov2", "dinov2_with_registers")
"""Towers that do so unasked."""


def check_shrinking(parts: ModelParts) -> None:
    """Refuse models for which a smaller picture is not the same picture with fewer tokens.

    Raises:
        UnsupportedModelError: with the reason.
    """
    tower = parts.tower
    reason = ""
    if tower.packing is not None:
        reason = "takes pictures of any size: scale yours down before the processor (its max_pixels) instead"
    elif parts.packer is not None:
        reason = "cuts a picture into tiles by its size: a smaller one would be cut differently"
    elif parts.group > 1:
        reason = "joins squares of patches, which a smaller grid does not always have"
    elif "video" in parts.placeholders:
        reason = "reads videos, whose frames share a budget with their CLS tokens"
    elif INTERPOLATE not in accepted(tower) and tower.config.model_type not in ALWAYS:
        reason = f"has a {type(tower.module).__name__}, which cannot interpolate its position embeddings"
    if reason:
        raise UnsupportedModelError(
            f"Pictures cannot be scaled down for this method: {type(parts.base).__name__} {reason}."
        )


def accepted(tower: VisionTower) -> Any:
    """Names of the tower's arguments."""
    return inspect.signature(type(tower.module).forward).parameters


def small_grid(height: int, width: int, patches: int) -> tuple[int, int]:
    """The largest grid of about the proportions of ``height`` x ``width`` with at most ``patches`` patches."""
    rows = min(height, max(1, int((patches * height / width) ** 0.5)))
    columns = min(width, patches // rows)
    return min(height, patches // columns), columns


def shrink(
    tower: VisionTower, pixels: Tensor, kwargs: dict[str, Any], grid: tuple[int, int], plan: list[TilePlan]
) -> tuple[Tensor, dict[str, Any], list[TilePlan], Tensor]:
    """Scale a batch of pictures down to the budget, which is the same for all since they are of one size.

    Args:
        tower: what will read them.
        pixels: ``[B, channels, height, width]``.
        kwargs: the other arguments of the tower's call.
        grid: patches, (height, width).
        plan: what shall become of each; there is something to cut.

    Returns:
        Pixels and arguments for the tower, the plan in which its small pictures stay whole, and int64 ``[K]``: the
        patch of the full grid that each small one stands for.
    """
    rows, columns = small_grid(*grid, plan[0].targets[0])
    size = (rows * tower.patch_size, columns * tower.patch_size)
    small = nn.functional.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True).to(pixels.dtype)
    if INTERPOLATE in accepted(tower):
        kwargs = {**kwargs, INTERPOLATE: True}
    lines, places = (centres(full, part, pixels.device) for full, part in zip(grid, (rows, columns), strict=True))
    whole = [replace(image, targets=(rows * columns,)) for image in plan]
    return small, kwargs, whole, (lines[:, None] * grid[1] + places).flatten()


def centres(full: int, part: int, device: torch.device) -> Tensor:
    """The middles of ``part`` equal parts of ``full`` positions."""
    return ((2 * torch.arange(part, device=device) + 1) * full) // (2 * part)
