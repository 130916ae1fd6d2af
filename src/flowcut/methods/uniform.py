"""Uniform: a control. Patches on a regular grid, whatever the picture shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Method
from .policies import ProjectorPolicy
from .views import ProjectedView


@dataclass(frozen=True)
class Uniform(Method):
    """Evenly spaced rows, and in each evenly spaced tokens, exactly as many as the budget allows.

    Tiles and frames share an image's budget in equal parts. Where a model leaves out part of a grid (the padding of
    LLaVA-NeXT's tiles), the tokens are spaced evenly in the order of the prompt instead.
    """

    name: ClassVar[str] = "uniform"
    summary: ClassVar[str] = "a control: tokens on a regular grid"
    stage: ClassVar[str] = "behind the projector"
    cuts_tower: ClassVar[bool] = False
    cuts_projected: ClassVar[bool] = True

    def projector_policy(self) -> ProjectorPolicy:
        return UniformPolicy()


class UniformPolicy(ProjectorPolicy):
    """Looks at places only."""

    def select(self, view: ProjectedView) -> Tensor:
        count = len(view.places)
        grids = view.grid[0] if len(view.grid) == 3 else 1
        height, width = view.grid[-2:]
        if count != grids * height * width or view.target < grids:
            return evenly(count, view.target).to(view.places.device)
        share, rest = divmod(view.target, grids)
        chosen = [on_grid(height, width, share + (number < rest)) + number * height * width for number in range(grids)]
        wanted = torch.cat(chosen).to(view.places.device)
        return torch.isin(view.places, wanted).nonzero()[:, 0]


def evenly(count: int, chosen: int) -> Tensor:
    """``chosen`` of ``count`` positions, the middles of equal parts; int64, ascending and distinct."""
    return ((2 * torch.arange(chosen) + 1) * count) // (2 * chosen)


def on_grid(height: int, width: int, chosen: int) -> Tensor:
    """``chosen`` places of a grid, spread evenly over evenly spaced rows; int64, ascending.

    Args:
        height, width: of the grid.
        chosen: at most ``height * width``.
    """
    rows = min(height, max(round((chosen * height / width) ** 0.5), -(-chosen // width), 1), chosen)
    # Rows with one token more lie spread among the others.
    bounds = (torch.arange(rows + 1) * chosen) // rows
    lines = evenly(height, rows).tolist()
    return torch.cat(
        [evenly(width, count) + line * width for line, count in zip(lines, bounds.diff().tolist(), strict=True)]
    )
