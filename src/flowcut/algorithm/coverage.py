"""The tokens that stand best for all of an image: greedy coverage. Pure functions.

Shapes: B sets of N tokens each (images, or the frames of a video in one row); every set is chosen from on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .compiling import STEPS, compiled
from .selection import in_order

NOTHING_NEW = 1e-6
"""Added to what a token covers anew, as a share of all: where everything is covered, quality decides."""


def largest_coverage(
    features: Tensor,
    quality: Tensor,
    counts: Sequence[int],
    size: Tensor | None = None,
    valid: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Greedily the tokens that cover most, each step the one whose ``quality * (coverage it adds)`` is largest.

    A set covers a token by the largest cosine between it and one of the set (0 for the empty set), and coverage is the
    mean of that over all tokens, each counted ``size`` times. All sets take their steps together, and the host never
    waits for the device.

    Args:
        features: ``[B, N, width]``, compared by cosine.
        quality: ``[B, N]``, at least 0; only its proportions within a set count.
        counts: how many tokens each set keeps, at most its real ones.
        size: ``[B, N]``, how many patches every token stands for; ``None`` where each stands for itself alone.
        valid: ``[B, N]``, false in padding, which is never taken and need not be covered.
        first: int64 ``[B, F]``, different tokens that are taken before all others; no set keeps fewer than F.

    Returns:
        int64 ``[B, max(counts)]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
    """
    sets, tokens, _ = features.shape
    steps = max(counts)
    if steps == 0:
        return torch.zeros(sets, 0, dtype=torch.long, device=features.device)
    normed = torch.nn.functional.normalize(features.float(), dim=-1)
    # What every token would cover anew of every other: at first its similarity to it.
    new = torch.matmul(normed, normed.mT).relu_()
    weight = features.new_ones(sets, tokens, dtype=torch.float32) if size is None else size.float()
    quality = quality.float()
    rest = quality * NOTHING_NEW
    if valid is not None:
        weight = weight.masked_fill(~valid, 0.0)
        rest = rest.masked_fill(~valid, float("-inf"))
    weight = (weight / weight.sum(dim=1, keepdim=True))[..., None]
    return in_order(covering(new, rest, quality, weight, steps, first), counts, tokens)


def covering(
    new: Tensor, rest: Tensor, quality: Tensor, weight: Tensor | None, steps: int, first: Tensor | None = None
) -> Tensor:
    """Greedily the tokens with the largest ``rest + quality * added``, in the order in which they are taken.

    Args:
        new: ``[B, N, N]``, what every token would cover of every other; overwritten.
        rest: ``[B, N]``, what counts beside coverage; minus infinity for what must not be taken.
        quality: ``[B, N]``.
        weight: ``[B, N, 1]``, how much each token counts where it is covered; ``None``: 1.
        steps: how many tokens.
        first: int64 ``[B, F]``, what is taken before all others.

    Returns:
        int64 ``[B, steps]``.
    """
    given = 0 if first is None else first.shape[1]
    order: list[Tensor] = []
    added: Tensor | None = None
    while len(order) < steps:
        if first is not None and len(order) < given:
            best = first[:, len(order) : len(order) + 1]
        else:
            added = adds(new, weight) if added is None else added
            state = (new, added, rest, quality, weight, STEPS)
            together = compiled(cover_steps, *state) if len(order) + STEPS <= steps else None
            if together is not None:
                picked, new, added, rest = together(*state)
                order += picked
                continue
            best = torch.addcmul(rest, added, quality).argmax(dim=1, keepdim=True)
            added = None
        order.append(best)
        if len(order) < steps:
            rest = rest.scatter(1, best, float("-inf"))
            new.sub_(new.gather(1, best[..., None].expand(-1, -1, new.shape[2]))).relu_()
    return torch.cat(order, dim=1)


def adds(new: Tensor, weight: Tensor | None) -> Tensor:
    """The coverage that every token adds, ``[B, N]``."""
    return new.sum(dim=2) if weight is None else torch.matmul(new, weight)[..., 0]


def cover_steps(
    new: Tensor, added: Tensor, rest: Tensor, quality: Tensor, weight: Tensor | None, steps: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Steps of :func:`covering` in a form that a compiler makes two kernels each of.

    Args:
        new, rest, quality, weight: see there; nothing is overwritten.
        added: ``[B, N]``, the coverage that every token adds.
        steps: how many.

    Returns:
        The tokens taken, int64 ``[B, 1]`` each, and ``new``, ``added`` and ``rest`` behind them.
    """
    places = torch.arange(new.shape[1], device=new.device)
    picked: list[Tensor] = []
    for _ in range(steps):
        best = torch.addcmul(rest, added, quality).argmax(dim=1, keepdim=True)
        picked.append(best)
        rest = torch.where(places == best, float("-inf"), rest)
        new = (new - new.gather(1, best[..., None].expand(-1, -1, new.shape[2]))).relu()
        # No matrix product, which no compiler would join with what comes before.
        added = (new if weight is None else new * weight.mT).sum(dim=2)
    return picked, new, added, rest
