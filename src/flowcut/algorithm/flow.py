"""What one attention layer says about each patch token (FlowCut, section 3; arXiv 2505.19536).

Pure functions on tensors. Shapes: B images, H heads, S tokens of one layer (``prefix`` leading tokens such
as CLS, then N = S - prefix patches), D head size. ``valid`` marks the real tokens of a padded batch,
``[B, S]`` or ``None`` where all are real. Everything is computed in float32, whatever the inputs' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def global_row(states: Tensor, prefix: int, valid: Tensor | None = None) -> Tensor:
    """The global token's row of ``states``: CLS where the tower has one, else the mean over the image.

    Args:
        states: queries or values, ``[B, H, S, D]``.
        prefix: how many leading tokens are not patches; the first of them is CLS. 0 means "no CLS".
        valid: ``[B, S]``, true for real tokens.

    Returns:
        ``[B, H, 1, D]`` in float32.
    """
    if prefix > 0:
        return states[:, :, :1].float()
    if valid is None:
        return states.float().mean(dim=2, keepdim=True)
    weights = valid[:, None, :, None].float()
    return (states.float() * weights).sum(dim=2, keepdim=True) / weights.sum(dim=2, keepdim=True)


def head_mean_softmax(row: Tensor, states: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    """``mean_h softmax_j(row_h . states_hj * scale)`` over all tokens of each image.

    Args:
        row: ``[B, H, 1, D]``, float32.
        states: ``[B, H, S, D]``.
        scale: factor on the dot products.
        valid: ``[B, S]``; padded tokens get probability 0.

    Returns:
        ``[B, S]``, float32, each row summing to 1.
    """
    logits = torch.matmul(row * scale, states.float().transpose(-1, -2)).squeeze(-2)
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, :], float("-inf"))
    return logits.softmax(dim=-1).mean(dim=1)


def relation(query: Tensor, key: Tensor, scaling: float, prefix: int, valid: Tensor | None = None) -> Tensor:
    """Relation (information strength) A of every patch: the global token's attention, mean over heads.

    Only the global token's row is computed, never the S x S map. DESIGN of the paper: eq. 1-2.

    Args:
        query, key: ``[B, H, S, D]`` after the layer's projections.
        scaling: the layer's own factor on ``q . k`` (1 / sqrt(D)).
        prefix, valid: see :func:`global_row`.

    Returns:
        ``[B, N]``, not renormalised over the patches.
    """
    return head_mean_softmax(global_row(query, prefix, valid), key, scaling, valid)[:, prefix:]


def semantic(value: Tensor, prefix: int, scale: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Semantic relevance M of every patch: softmax of ``v_g . v_j``, mean over heads.

    Args:
        value: ``[B, H, S, D]``.
        scale: factor on the dot products: 1 as released, 1 / sqrt(D) as in the paper's pseudocode.

    Returns:
        ``[B, N]``, not renormalised over the patches.
    """
    return head_mean_softmax(global_row(value, prefix, valid), value, scale, valid)[:, prefix:]


def density(value: Tensor, prefix: int) -> Tensor:
    """Information density R of every patch: the L1 norm of its value vector averaged over heads.

    Args:
        value: ``[B, H, S, D]``.

    Returns:
        ``[B, N]``.
    """
    return value[:, :, prefix:].float().mean(dim=1).abs().sum(dim=-1)


def share(strength: Tensor, valid: Tensor | None = None) -> Tensor:
    """``strength`` divided by its sum over the (real) patches of each image, ``[B, N]``."""
    if valid is not None:
        strength = strength.masked_fill(~valid, 0.0)
    return strength / strength.sum(dim=-1, keepdim=True)


def group_means(values: Tensor, group: int) -> Tensor:
    """Means over every ``group`` tokens that follow one another, ``[B, N]`` to ``[B, N / group]``."""
    return values if group == 1 else values.reshape(*values.shape[:-1], -1, group).mean(dim=-1)


def score(relation_share: Tensor, semantic_share: Tensor, density: Tensor) -> Tensor:
    """``S = (A / sum A + M / sum M) * R``, ``[B, N]`` (paper, eq. 5)."""
    return (relation_share + semantic_share) * density


def accumulate(history: Tensor | None, current: Tensor, weight: float) -> Tensor:
    """Cumulative importance ``C = weight * history + (1 - weight) * current``; ``current`` at first."""
    return current if history is None else weight * history + (1.0 - weight) * current
