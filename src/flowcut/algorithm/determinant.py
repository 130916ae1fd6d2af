"""The most different of the tokens that matter: greedy MAP of a determinantal point process. Pure functions.

Shapes: B sets of N tokens each (images, or the frames of a video in one row); every set is chosen from on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
        first: boolean ``[B, N]``, tokens that are taken before all others; at most as many as the set keeps.

    Returns:
        int64 ``[B, max(counts)]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
    """
    sets, tokens, _ = features.shape
    steps = max(counts)
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    quality = quality.float() / quality.float().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    out = torch.zeros_like(quality, dtype=torch.bool) if valid is None else ~valid
    gain = quality.square() * (1.0 + RIDGE)
    factors = gain.new_zeros(sets, steps, tokens)
    order = torch.zeros(sets, steps, dtype=torch.long, device=features.device)
    for step in range(steps):
        ranked = gain.masked_fill(out, float("-inf"))
        if first is not None:
            ranked = ranked.masked_fill(first & ~out, float("inf"))
        best = ranked.argmax(dim=1, keepdim=True)
        order[:, step : step + 1] = best
        out = out.scatter(1, best, True)
        if step == steps - 1:
            break
        chosen = unit.gather(1, best[..., None].expand(-1, -1, unit.shape[-1]))
        row = quality * quality.gather(1, best) * torch.matmul(unit, chosen.mT)[..., 0]
        known = factors[:, :step]
        row = row - torch.matmul(known.gather(2, best[:, None].expand(-1, step, -1)).mT, known)[:, 0]
        row = row * gain.gather(1, best).clamp(min=1e-12).rsqrt()
        factors[:, step] = row
        gain = (gain - row.square()).clamp(min=0.0)
    if min(counts) == steps:
        return order.sort(dim=1).values
    real = torch.arange(steps, device=order.device) < torch.tensor(list(counts), device=order.device)[:, None]
    return order.masked_fill(~real, tokens).sort(dim=1).values.masked_fill(~real, 0)
