"""Running part of a layer on the tokens that go on after it, and on no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...algorithm.selection import counts_mask, gather_tokens, put_tokens
from ...methods.views import Merge, Selection


@dataclass
class Narrowing:
    """The tokens of a layer that go on after it.

    A layer wants the outputs of its parts at full length. What stands there for tokens that do not go on is never read:
    they leave behind the layer, and their gradient is zero. So whatever is at hand may stand there.

    Attributes:
        index: ``[B, K]``, their positions among the layer's S tokens, filled up with valid positions.
        real: ``[B, K]``, false where ``index`` is filled up; ``None`` where it is not.
        in_front: whether the layer's attention was computed for these tokens alone, which stand in front of its output.
    """

    index: Tensor
    real: Tensor | None
    in_front: bool = False

    @classmethod
    def to(cls, index: Tensor, counts: Sequence[int]) -> Narrowing:
        """To the first ``counts[b]`` entries of every row of ``index``."""
        width = index.shape[1]
        return cls(index, None if min(counts) == width else counts_mask(counts, width, index.device))

    def narrow(self, states: Tensor) -> Tensor:
        """``[B, S, ...]`` to ``[B, K, ...]``."""
        return gather_tokens(states, self.index.to(states.device))

    def in_front_of(self, states: Tensor, tokens: int) -> Tensor:
        """An attention's output ``[B, K, ...]`` as ``[B, tokens, ...]``, zeros behind the tokens that go on."""
        self.in_front = True
        return nn.functional.pad(states, (*[0, 0] * (states.dim() - 2), 0, tokens - states.shape[1]))

    def widen(self, states: Tensor, base: Tensor) -> Tensor:
        """``[B, K, ...]`` to ``[B, S, ...]``: ``states`` at the tokens that go on.

        Args:
            base: ``[B, S, ...]``, what the layer's part was given: where it fits, it stands at the other tokens.
        """
        tokens = base.shape[1]
        if base.shape[2:] != states.shape[2:] or base.dtype != states.dtype or base.device != states.device:
            base = states.new_zeros(states.shape[0], tokens, *states.shape[2:])
        index = self.index.to(states.device)
        if self.real is not None:
            # What fills up a row goes to one slot more, so that no token is written, or gets its gradient, twice.
            index = index.masked_fill(~self.real.to(states.device), tokens)
            base = torch.cat([base, base[:, :1]], dim=1)
        return put_tokens(base, index, states)[:, :tokens]


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
