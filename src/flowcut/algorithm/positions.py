"""The position ids of what is left behind a cut: renumbered, or as they were. Pure functions."""

from __future__ import annotations

from torch import Tensor

from .columns import ColumnCut


def shifted_positions(
    positions: Tensor, cut: ColumnCut, removed_before: Tensor, dropped: Tensor, compact: bool
) -> Tensor:
    """Position ids of the columns that stay.

    Args:
        positions: ``[B, L]`` as in the uncut batch, or ``[axes, B, L]`` where a position is a place in a picture.
        cut: the plan.
        removed_before: ``[B]``, columns each sample lost in earlier passes over the same cache.
        dropped: boolean ``[B, L]``, visual tokens dropped now.
        compact: renumber, closing the gaps; otherwise every token keeps its position, as it always
            does where a position has several axes.

    Returns:
        ``[B, K]``, or ``[axes, B, K]``.
    """
    if positions.dim() == 3:
        return cut.take(positions.permute(1, 2, 0)).permute(2, 0, 1)
    if compact:
        positions = positions - removed_before[:, None] - dropped.long().cumsum(dim=1)
    return cut.take(positions).clamp(min=0)
