"""Running part of a layer on the tokens that go on after it, and on no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...algorithm.selection import counts_mask, gather_tokens
from ...methods.views import Merge, Selection


@dataclass(frozen=True)
class Narrowing:
    """The tokens of a layer that go on after it.

    Attributes:
        index: ``[B, K]``, their positions among the layer's S tokens, filled up with valid positions.
        real: ``[B, K]``, false where ``index`` is filled up.
    """

    index: Tensor
    real: Tensor

    @classmethod
    def to(cls, index: Tensor, counts: Sequence[int]) -> Narrowing:
        """To the first ``counts[b]`` entries of every row of ``index``."""
        return cls(index, counts_mask(counts, index.shape[1], index.device))

    def narrow(self, states: Tensor) -> Tensor:
        """``[B, S, ...]`` to ``[B, K, ...]``."""
        return gather_tokens(states, self.index.to(states.device))

    def widen(self, states: Tensor, tokens: int) -> Tensor:
        """``[B, K, ...]`` to ``[B, tokens, ...]``, with zeros at the tokens that do not go on."""
        # What fills up a row goes to one slot more, so that no token is written, or gets its gradient, twice.
        index = self.index.masked_fill(~self.real, tokens).to(states.device)
        index = index.reshape(*index.shape, *[1] * (states.dim() - 2)).expand_as(states)
        empty = states.new_zeros(states.shape[0], tokens + 1, *states.shape[2:])
        return empty.scatter(1, index, states)[:, :tokens]


@dataclass(frozen=True)
class Merging:
    """The tokens behind a layer that joins some of its patches.

    Attributes:
        weights: ``[B, K, N]``, see :class:`~flowcut.methods.views.Merge`.
        prefix: leading tokens that stay as they are.
        group: how many tokens that follow one another are one patch (or group) here.
    """

    weights: Tensor
    prefix: int
    group: int

    def narrow(self, states: Tensor) -> Tensor:
        """``[B, S, width]`` to ``[B, K, width]``."""
        units = states[:, self.prefix :].reshape(states.shape[0], -1, self.group * states.shape[-1])
        with torch.autocast(states.device.type, enabled=False):
            merged = torch.matmul(self.weights.to(states.device), units.float()).to(states.dtype)
        return torch.cat([states[:, : self.prefix], merged.reshape(states.shape[0], -1, states.shape[-1])], dim=1)


def sources_after(before: Tensor | None, selection: Selection) -> Tensor | None:
    """Which of the uncut patches went into every token, boolean ``[B, K, patches]``; ``None`` where none was merged."""
    if isinstance(selection, Merge):
        into = selection.weights != 0
        if before is None:
            return into
        return torch.matmul(into.float(), before[:, : into.shape[2]].to(into.device).float()) > 0
    return None if before is None else gather_tokens(before.to(selection.index.device), selection.index)
