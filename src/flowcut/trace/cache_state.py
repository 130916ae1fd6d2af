"""What is left on a key-value cache of a sequence that was cut, so that later passes can go on from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

ROOM = 128
"""Columns by which a mask is made longer than it must be, so that the next steps need no longer one."""


@dataclass(frozen=True)
class CacheState:
    """How the columns of a cut cache relate to the uncut sequence.

    Attributes:
        mask: ``[B, any]``, 1 for real tokens; what it is short of, and what it has too many, are ones.
        removed: ``[B]``, columns that each sample lost.
        uncut_length: columns that the caller believes to be cached.
        cached: columns that are cached.
        full: whether it is known that all of them are real tokens, so that no mask is needed.
    """

    mask: Tensor
    removed: Tensor
    uncut_length: int
    cached: int
    full: bool = False

    @property
    def attention_mask(self) -> Tensor:
        """``[B, cached]``, 1 for real tokens."""
        return self._reaching(self.cached)[:, : self.cached]

    @property
    def needed_mask(self) -> Tensor | None:
        """The same, or ``None`` where there is no padding to be masked."""
        return None if self.full else self.attention_mask

    def followed_by(self, columns: int, mask: Tensor | None) -> CacheState:
        """The state when ``columns`` more are cached.

        Args:
            columns: how many.
            mask: ``[B, columns]``, 1 for real tokens; ``None`` where all are.
        """
        later = replace(self, cached=self.cached + columns, uncut_length=self.uncut_length + columns)
        if mask is not None:
            return replace(later, mask=torch.cat([self.attention_mask, mask.to(self.mask)], dim=1), full=False)
        # A step of decoding adds one column, and so a longer mask is made only now and then.
        return later if self.full else replace(later, mask=self._reaching(later.cached, ahead=ROOM))

    def cropped(self, excess: int) -> CacheState:
        """The state after the last ``excess`` entries were cropped off the cache (assisted decoding does that)."""
        cached = self.cached - excess
        return replace(self, mask=self.mask[:, :cached], uncut_length=self.uncut_length - excess, cached=cached)

    def _reaching(self, columns: int, ahead: int = 0) -> Tensor:
        """The mask with ones behind it, where it is shorter than ``columns``."""
        missing = columns - self.mask.shape[1]
        return self.mask if missing <= 0 else nn.functional.pad(self.mask, (0, missing + ahead), value=1)
