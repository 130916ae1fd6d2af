"""When to cut and how many tokens (FlowCut, section 3.3; arXiv 2505.19536). Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def layers_to_last_cut(layer: int, feature_layer: int) -> int:
    """How many layers come after ``layer`` until the last cut.

    Args:
        layer: 0-based index of a vision layer.
        feature_layer: the hidden state the model reads, as a positive index into ``hidden_states`` (0 is the
            embedding output). LLaVA's ``-2`` of 24 layers is 23. The layer that produces it runs on the
            final tokens, so the last cut follows the layer before it.

    Returns:
        0 at the layer of the last cut, negative after it.
    """
    return feature_layer - 2 - layer


def cuts_after(layer: int, feature_layer: int, every: int | None = 2) -> bool:
    """Whether tokens are cut after the MLP of ``layer``: every ``every`` layers, counted from the last cut.

    With ``every`` ``None`` they are cut at the last cut only.
    """
    remaining = layers_to_last_cut(layer, feature_layer)
    return remaining == 0 or (every is not None and remaining > 0 and remaining % every == 0)


def entropy_ratio(relation_share: Tensor, counts: Tensor) -> Tensor:
    """``H / ln N``: entropy of the global token's attention over the patches, relative to its maximum.

    Args:
        relation_share: ``[B, N]``, each row summing to 1, 0 for padding.
        counts: ``[B]``, patches alive in each image.

    Returns:
        ``[B]``; ``p log p`` is 0 at ``p = 0``, and a single patch has ratio 1.
    """
    entropy = torch.special.entr(relation_share.float()).sum(dim=-1)
    return torch.where(counts > 1, entropy / counts.clamp(min=2).float().log(), torch.ones_like(entropy))


def cut_count(ratio: Tensor, counts: Tensor, targets: Tensor, remaining: int) -> Tensor:
    """How many patches each image loses at one cut.

    ``r = (N - T) / sqrt(remaining) * (1 - ratio^2)``, rounded half to even, never below ``T`` patches.
    With ``remaining`` 0 (the last cut) everything above ``T`` goes.

    Args:
        ratio: :func:`entropy_ratio`, ``[B]``.
        counts: patches alive, ``[B]``.
        targets: ``T``, ``[B]``.
        remaining: :func:`layers_to_last_cut`.

    Returns:
        ``[B]``, int64.
    """
    surplus = (counts - targets).clamp(min=0)
    if remaining == 0:
        return surplus
    wanted = torch.round(surplus.float() / remaining**0.5 * (1.0 - ratio**2)).long()
    return torch.minimum(wanted.clamp(min=0), surplus)


def even_count(counts: Tensor, targets: Tensor, remaining: int, every: int | None) -> Tensor:
    """How many patches each image loses at one cut where all cuts that are left take equal shares.

    Args:
        counts: patches alive, ``[B]``.
        targets: ``T``, ``[B]``.
        remaining: :func:`layers_to_last_cut`.
        every: layers between cuts, ``None`` for a single one.

    Returns:
        ``[B]``, int64; the last cut takes what is left.
    """
    cuts_left = 1 if every is None else remaining // every + 1
    return (counts - targets).clamp(min=0) // cuts_left
