"""The position ids of what is left behind a cut: renumbered, or as they were. Pure functions."""

from __future__ import annotations

from torch import Tensor

from .columns import ColumnCut


def shifted_positions(
    positions: Tensor,
    cut: ColumnCut,
    removed_before: Tensor | None,
    dropped: Tensor,
    compact: bool,
    starts: Tensor | None = None,
) -> Tensor:
    """Position ids of the columns that stay.

    Args:
        positions: ``[B, L]`` as in the uncut batch, or ``[axes, B, L]`` where a position is a place in a picture.
        cut: the plan.
        removed_before: ``[B]``, columns each sample lost in earlier passes over the same cache; ``None`` for none.
        dropped: boolean ``[B, L]``, visual tokens dropped now.
        compact: renumber, closing the gaps; otherwise every token keeps its position, as it always
            does where a position has several axes.
        starts: boolean ``[B, L]``, where a new sample begins in a row that several samples share, if there is any.

    Returns:
        ``[B, K]``, or ``[axes, B, K]``.
    """
    if positions.dim() == 3:
        return cut.take(positions.permute(1, 2, 0)).permute(2, 0, 1)
    if compact:
        removed = dropped.cumsum(dim=1)
        if starts is not None:
            removed = removed - (removed - dropped.long()).masked_fill(~starts, 0).cummax(dim=1).values
        if removed_before is not None:
            removed = removed + removed_before[:, None]
        positions = positions - removed
    taken = cut.take(positions)
    return taken if cut.even and cut.unpadded else taken.clamp(min=0)
