"""The tokens that stand best for all of an image: greedy coverage. Pure functions.

Shapes: B sets of N tokens each (images, or the frames of a video in one row); every set is chosen from on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    order: list[Tensor] = []
    for step in range(steps):
        if first is not None and step < first.shape[1]:
            best = first[:, step : step + 1]
        else:
            added = torch.matmul(new, weight)[..., 0]
            best = torch.addcmul(rest, added, quality).argmax(dim=1, keepdim=True)
        order.append(best)
        if step + 1 < steps:
            rest = rest.scatter(1, best, float("-inf"))
            new.sub_(new.gather(1, best[..., None].expand(-1, -1, tokens))).relu_()
    return in_order(torch.cat(order, dim=1), counts, tokens)
