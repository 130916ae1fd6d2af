"""Numbers about patches that are only looked at; no method cuts by them. Pure functions; shapes as in ``flow.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .flow import global_row

LOGITS = 2**22
"""How many attention logits are held at once."""


def redundancy(states: Tensor, valid: Tensor | None = None) -> Tensor:
    """How much every patch is like the others: the mean of its cosine similarities with them, ``[B, N]``.

    It is computed from the mean of the unit vectors, never from an N x N matrix. The mean over the patches is the mean
    over all pairs.

    Args:
        states: ``[B, N, width]``.
        valid: ``[B, N]``, true for patches that count; the others get NaN.

    Returns:
        float32; 0 where there is no other patch.
    """
    unit = nn.functional.normalize(states.float(), dim=-1)
    if valid is None:
        count: Tensor | int = unit.shape[1]
        total = unit.sum(dim=1, keepdim=True)
    else:
        count = valid.sum(dim=1, keepdim=True)
        total = (unit * valid[..., None]).sum(dim=1, keepdim=True)
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    similarity = (torch.matmul(unit, total.transpose(-1, -2))[..., 0] - 1) / others
    similarity = torch.where(torch.as_tensor(count, device=unit.device) > 1, similarity, 0.0)
    return similarity if valid is None else similarity.masked_fill(~valid, float("nan"))


def attention_to_global(query: Tensor, key: Tensor, scaling: float, prefix: int) -> Tensor:
    """Attention that every patch pays to the global token, mean over heads, ``[B, N]``.

    Without CLS it is what a token with the mean of the keys would get if it stood beside the others. This takes all
    N x N logits, a few rows at a time.

    Args:
        query, key: ``[B, H, S, D]`` after the layer's projections.
        scaling: the layer's own factor on ``q . k`` (1 / sqrt(D)).
        prefix: see :func:`~flowcut.algorithm.flow.global_row`.
    """
    keys = key.float().transpose(-1, -2)
    wanted = global_row(key, prefix).transpose(-1, -2)
    rows = max(1, LOGITS // (key.shape[0] * key.shape[1] * key.shape[2]))
    parts = []
    for block in torch.split(query[:, :, prefix:].float(), rows, dim=2):
        whole = torch.matmul(block, keys).mul_(scaling).logsumexp(dim=-1)
        own = torch.matmul(block, wanted)[..., 0] * scaling
        parts.append((own - (whole if prefix else torch.logaddexp(whole, own))).exp().mean(dim=1))
    return torch.cat(parts, dim=1)
