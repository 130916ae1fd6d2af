"""The most different of the tokens that matter: greedy MAP of a determinantal point process. Pure functions.

Shapes: B sets of N tokens each (images, or the frames of a video in one row); every set is chosen from on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .selection import in_order

RIDGE = 1e-3
"""Added to every token's similarity to itself: beyond the kernel's rank, where determinants are 0, quality decides."""


def centred(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """``features`` ``[B, N, width]`` minus their mean over each set's real tokens, in float32.

    Args:
        valid: ``[B, N]``, false in padding; ``None`` where all tokens are real.
    """
    features = features.float()
    if valid is None:
        return features - features.mean(dim=1, keepdim=True)
    weights = valid[..., None].float()
    mean = (features * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return (features - mean) * weights


def largest_determinant(
    features: Tensor, quality: Tensor, counts: Sequence[int], valid: Tensor | None = None, first: Tensor | None = None
) -> Tensor:
    """Greedily the tokens whose kernel ``q_i (cos(x_i, x_j) + RIDGE [i = j]) q_j`` has the largest determinant.

    Every step takes the token that raises the determinant most, by incremental Cholesky factors (Chen et al., NeurIPS
    2018). All sets take their steps together, no ``N x N`` matrix is held, and the host never waits for the device.

    Args:
        features: ``[B, N, width]``, compared by cosine; a row of zeros is similar to nothing.
        quality: ``[B, N]``, at least 0; only its proportions within a set count.
        counts: how many tokens each set keeps, at most its real ones.
        valid: ``[B, N]``, false in padding, which is never taken.
        first: int64 ``[B, F]``, different tokens that are taken before all others; no set keeps fewer than F.

    Returns:
        int64 ``[B, max(counts)]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
    """
    sets, tokens, width = features.shape
    steps = max(counts)
    if steps == 0:
        return torch.zeros(sets, 0, dtype=torch.long, device=features.device)
    quality = quality.float() / quality.float().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    weighted = torch.nn.functional.normalize(features.float(), dim=-1) * quality[..., None]
    # What is known of every token, side by side: its features, and its entry in the factor of every step so far. The
    # kernel's row less what the factors explain is then one product, with the factors' part negative.
    known = torch.nn.functional.pad(weighted, (0, steps))
    signs = known.new_ones(width + steps)
    signs[width:] = -1.0
    gain = quality.square() * (1.0 + RIDGE)
    if valid is not None:
        gain = gain.masked_fill(~valid, float("-inf"))
    order: list[Tensor] = []
    for step in range(steps):
        if first is not None and step < first.shape[1]:
            best = first[:, step : step + 1]
            most = gain.gather(1, best)
        else:
            most, best = gain.max(dim=1, keepdim=True)
        order.append(best)
        taken = known.gather(1, best[..., None].expand(-1, -1, width + steps)) * signs
        row = torch.matmul(known, taken.mT)[..., 0] * most.clamp(min=1e-12).rsqrt()
        known[..., width + step] = row
        gain = gain.addcmul(row, row, value=-1.0).scatter_(1, best, float("-inf"))
    return in_order(torch.cat(order, dim=1), counts, tokens)
