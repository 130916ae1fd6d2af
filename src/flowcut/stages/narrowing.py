"""Running part of a layer on the tokens that go on after it, and on no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..selection import counts_mask, gather_tokens


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
