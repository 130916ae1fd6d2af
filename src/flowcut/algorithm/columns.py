"""Dropping columns from a batch of prompts. Pure functions.

A batch is ``[B, L]``; every sample loses its own columns. What is left is padded to the longest sample, on the
side where the batch was padded, and padding that is no longer needed goes away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .selection import gather_tokens


@dataclass(frozen=True)
class ColumnCut:
    """Which columns stay.

    Attributes:
        index: ``[B, K]``, source column of every column that is left.
        real: ``[B, K]``, false where a column is padding added here (its index is meaningless).
        source_length: L.
        whole: whether every column stays where it was.
        even: whether every row keeps the same number of columns, so that no padding was added.
        unpadded: whether it is known that there was none before.
    """

    index: Tensor
    real: Tensor
    source_length: int
    whole: bool = False
    even: bool = False
    unpadded: bool = False

    def take(self, values: Tensor, filler: float = 0) -> Tensor:
        """Rows ``[B, L, ...]`` shortened to ``[B, K, ...]``, with ``filler`` in the padding."""
        taken = gather_tokens(values, self.index.to(values.device))
        if self.even:
            return taken
        real = self.real.to(values.device).reshape(*self.real.shape, *[1] * (values.dim() - 2))
        return taken.masked_fill(~real, filler)

    def then(self, later: ColumnCut) -> ColumnCut:
        """This plan followed by ``later``, which chooses among the columns that this one leaves."""
        even = self.even and later.even
        return ColumnCut(
            self.index.gather(1, later.index),
            later.real if even else self.real.gather(1, later.index) & later.real,
            self.source_length,
            self.whole and later.whole,
            even,
            self.unpadded,
        )

    def columns(self) -> Tensor:
        """``[B, K]``: the source column of every column, -1 in padding."""
        return self.index if self.even else self.index.masked_fill(~self.real, -1)

    def stay(self) -> Tensor:
        """Boolean ``[B, L]``: which source columns stay."""
        return self._numbers() >= 0

    def last_kept(self) -> Tensor:
        """``[B, L]``: for every source column the last column that stays at or before it, -1 where there is none."""
        return self._numbers().cummax(dim=1).values

    def _numbers(self) -> Tensor:
        """``[B, L]``: for every source column its number among those that are left, -1 where it does not stay."""
        rows, left = self.index.shape
        numbers = self.index.new_full((rows, self.source_length + 1), -1)
        # Padding goes to one slot more.
        index = self.index if self.even else self.index.masked_fill(~self.real, self.source_length)
        numbers = numbers.scatter(1, index, torch.arange(left, device=index.device).expand(rows, left))
        return numbers[:, :-1]


def laid_out(values: Tensor, places: Tensor) -> Tensor:
    """Values by source column: ``[B, K, ...]`` to ``[B, L, ...]``, 0 where ``places`` ``[B, L]`` is negative."""
    places = places.to(values.device)
    absent = (places < 0).reshape(*places.shape, *[1] * (values.dim() - 2))
    return gather_tokens(values, places.clamp(min=0)).masked_fill(absent, 0)


@dataclass(frozen=True)
class Known:
    """What the host knows of a plan, so that it need not wait for the device to be told.

    Attributes:
        narrowest: the fewest columns that a row keeps, its padding included.
        widest: the most.
        unpadded: whether the batch has no padding.
        full_at_end: whether no row is padding in the last column.
    """

    narrowest: int
    widest: int
    unpadded: bool
    full_at_end: bool


def keep_columns(
    keep: Tensor, attention_mask: Tensor | None, visual: Tensor | None = None, known: Known | None = None
) -> ColumnCut:
    """Plan which columns of a batch stay.

    Args:
        keep: boolean ``[B, L]``, false for the columns to drop.
        attention_mask: ``[B, L]``, 0 for padding, or ``None``. Leading and trailing padding is dropped and put
            back only as far as the samples' lengths differ.
        visual: boolean ``[B, L]``, columns that are not dropped as padding: their features must have a place. Some
            training code writes a picture into the padding, so that its tower runs where a batch has none.
        known: what the host knows; the device is asked for it else.

    Returns:
        The plan. Samples stand at the left where the batch is padded on the right, else at the right, so that
        the last column stays the last token of every sample.
    """
    known = ask(keep, attention_mask) if known is None else known
    chosen, narrowest, width = keep, known.narrowest, known.widest
    if attention_mask is not None and not known.unpadded:
        attended = attention_mask.to(device=keep.device, dtype=torch.bool)
        from_left = attended.cumsum(dim=1) > 0
        from_right = attended.flip(1).cumsum(dim=1).flip(1) > 0
        inside = from_left & from_right
        chosen = keep & (inside if visual is None else inside | visual)
        narrowest, width = torch.stack(chosen.sum(dim=1).aminmax()).tolist()
    on_the_right = not known.full_at_end
    order = ~chosen if on_the_right else chosen
    columns = order.view(torch.uint8).sort(dim=1, stable=True).indices
    index = columns[:, :width] if on_the_right else columns[:, columns.shape[1] - width :]
    even = narrowest == width
    real = torch.ones_like(index, dtype=torch.bool) if even else chosen.gather(1, index)
    return ColumnCut(index, real, keep.shape[1], even=even, unpadded=known.unpadded)


def ask(keep: Tensor, attention_mask: Tensor | None) -> Known:
    """What :func:`keep_columns` must know, asked for in one question, since each waits for the device."""
    kept = keep.sum(dim=1)
    if attention_mask is None:
        left: list[int] = kept.tolist()
        return Known(min(left), max(left), True, True)
    attended = attention_mask.to(device=keep.device, dtype=torch.bool)
    *left, unpadded, full_at_end = torch.cat([kept, attended.all()[None], attended[:, -1].all()[None]]).tolist()
    return Known(min(left), max(left), bool(unpadded), bool(full_at_end))


def all_columns(keep: Tensor, unpadded: bool = False) -> ColumnCut:
    """The plan for a batch ``[B, L]`` that loses nothing, padding included; ``unpadded`` where there is none."""
    index = torch.arange(keep.shape[1], device=keep.device).expand(keep.shape)
    return ColumnCut(index, torch.ones_like(keep), keep.shape[1], whole=True, even=True, unpadded=unpadded)
