"""When to cut and how many tokens (FlowCut, section 3.3; arXiv 2505.19536). Pure functions.

How many is known on the host, which must tell the device the shapes to come. Only the entropies are the device's; the
rest is arithmetic on a number for each image, in float32 as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ratios = NDArray[np.float32]
"""One number between 0 and 1 for each image."""


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


def entropy(relation_share: Tensor) -> Tensor:
    """``H = -sum p log p``: entropy of the global token's attention over the patches; 0 log 0 is 0.

    Args:
        relation_share: ``[B, N]``, each row summing to 1, 0 for padding.

    Returns:
        ``[B]``.
    """
    surprise: Tensor = torch.special.entr(relation_share.float())
    return surprise.sum(dim=-1)


def entropy_ratio(entropies: Sequence[float], counts: Sequence[int]) -> Ratios:
    """``H / ln N``: the entropy relative to its maximum; that of a single patch is 1.

    Args:
        entropies: :func:`entropy` of each image.
        counts: patches alive in each.
    """
    alive = np.asarray(counts)
    most = np.log(np.maximum(alive, 2).astype(np.float32))
    return np.where(alive > 1, np.asarray(entropies, dtype=np.float32) / most, np.float32(1))


def cut_count(ratio: Ratios, counts: Sequence[int], targets: Sequence[int], remaining: int) -> list[int]:
    """How many patches each image loses at one cut.

    ``r = (N - T) / sqrt(remaining) * (1 - ratio^2)``, rounded half to even, never below ``T`` patches.
    With ``remaining`` 0 (the last cut) everything above ``T`` goes.

    Args:
        ratio: :func:`entropy_ratio`, float32.
        counts: patches alive.
        targets: ``T``.
        remaining: :func:`layers_to_last_cut`.
    """
    surplus = np.maximum(np.asarray(counts) - np.asarray(targets), 0)
    if remaining == 0:
        return [int(every) for every in surplus]
    wanted = np.rint(surplus.astype(np.float32) / np.float32(remaining**0.5) * (1 - ratio**2))
    return [int(count) for count in np.minimum(np.maximum(wanted, 0), surplus)]


def even_count(counts: Sequence[int], targets: Sequence[int], remaining: int, every: int | None) -> list[int]:
    """How many patches each image loses at one cut where all cuts that are left take equal shares.

    Args:
        counts: patches alive.
        targets: ``T``.
        remaining: :func:`layers_to_last_cut`.
        every: layers between cuts, ``None`` for a single one.

    Returns:
        One number for each image; the last cut takes what is left.
    """
    cuts_left = 1 if every is None else remaining // every + 1
    return [max(count - target, 0) // cuts_left for count, target in zip(counts, targets, strict=True)]
