"""How many visual tokens of every image leave the projector, from the plan alone."""

from __future__ import annotations

from typing import Any

from ...methods.base import Method
from ...models.base import PREFIX, ModelFamily, ModelParts
from ..tower.shrinking import small_grid
from ..tower.tiles import TilePlan, plan_image


def planned_tokens(
    family: ModelFamily,
    parts: ModelParts,
    method: Method,
    rows: int,
    grid: tuple[int, int],
    options: dict[str, Any],
) -> list[int]:
    """Visual tokens that stay of every image of a call, for towers with a batch dimension.

    Args:
        rows: of the tower's batch.
        grid: patches of a row, (height, width).
        options: see :meth:`~flowcut.models.base.ModelFamily.layouts`.

    Raises:
        ValueError: the number depends on which tokens stay, so that it cannot be said beforehand.
    """
    choice = family.feature_choice(parts, options)
    patches = grid[0] * grid[1] // parts.group
    layouts = family.layouts(parts, choice, rows, grid, options)
    plans = [plan_image(method, layout, patches, choice, parts.second_cut) for layout in layouts]
    return [staying(method, plan, patches, grid) for plan in plans]


def staying(method: Method, plan: TilePlan, patches: int, grid: tuple[int, int]) -> int:
    """Visual tokens of one image that stay, see :func:`planned_tokens`."""
    layout = plan.layout
    available = len(layout.tokens)
    if plan.target == available:
        return available
    if not layout.complete and (method.image_newline or method.counts_padding()):
        setting = "image_newline=True" if method.image_newline else "padding_counts=True"
        raise ValueError(
            f"With {setting} the number of visual tokens depends on which patches stay, so it cannot be said before "
            "the picture is encoded. Leave that setting off."
        )
    if method.cuts_projected:
        prefix = int((layout.tokens == PREFIX).sum())
        return prefix + min(plan.target - prefix, int((layout.tokens >= 0).sum()))
    if plan.pooled_targets:
        return sum(plan.pooled_targets)
    targets = plan.targets
    if method.shrinks_picture and targets[0] < patches:
        rows, columns = small_grid(*grid, targets[0])
        targets = (rows * columns,)
    if layout.complete:
        return available - sum(patches - target for target in targets)
    return sum(targets) - len(plan.spare)
