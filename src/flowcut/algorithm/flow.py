"""What attention layers say about each patch token (FlowCut, section 3; arXiv 2505.19536).

Pure functions on tensors. Shapes: B images, H heads, S tokens of one layer (``prefix`` leading tokens such
as CLS, then N = S - prefix patches), D head size. ``valid`` marks the real tokens of a padded batch,
``[B, S]`` or ``None`` where all are real. Everything is computed in float32, whatever the inputs' dtype.

A score is only needed where tokens are cut. So of the layers in between a :func:`glimpse` is kept, a few numbers for
every patch, and :func:`compare` scores them all at once: a small picture's work is not the arithmetic but the number of
operations a GPU is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    logits = row_logits(row, states, scale)
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, :], float("-inf"))
    return logits.softmax(dim=-1).mean(dim=1)


def row_logits(row: Tensor, states: Tensor, scale: float) -> Tensor:
    """``row_h . states_hj * scale``, ``[B, H, S]``; arguments as in :func:`head_mean_softmax`."""
    rows, columns = row.flatten(0, 1), states.float().transpose(-1, -2).flatten(0, 1)
    # With beta 0 the first argument counts for its dtype and device alone.
    logits = torch.baddbmm(row.new_empty(()), rows, columns, beta=0, alpha=scale)
    return logits.reshape(*states.shape[:2], -1)


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
    return current if history is None else torch.lerp(history, current, 1.0 - weight)


def accumulated(history: Tensor | None, scores: Tensor, weight: float) -> Tensor:
    """Cumulative importance behind several layers, ``[B, N]``, from their ``scores`` ``[B, layers, N]``, in order."""
    for current in scores.unbind(dim=1):
        history = accumulate(history, current, weight)
    assert history is not None
    return history


@dataclass(frozen=True)
class Glimpse:
    """What is kept of one layer until its patches are compared.

    Attributes:
        logits: of the global token's row, ``[B, H, S]`` each: of relation, and of semantic relevance where it counts.
        value: the patches' values, averaged over heads, ``[B, N, D]``; ``None`` where density does not count.
    """

    logits: tuple[Tensor, ...]
    value: Tensor | None


def glimpse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    prefix: int,
    valid: Tensor | None = None,
    *,
    semantic_scale: float | None = 1.0,
    with_density: bool = True,
) -> Glimpse:
    """Take of a layer what :func:`compare` needs.

    Args:
        query, key, value: ``[B, H, S, D]`` after the layer's projections.
        scaling: the layer's own factor on ``q . k`` (1 / sqrt(D)).
        prefix, valid: see :func:`global_row`.
        semantic_scale: factor on ``v_g . v_j``: 1 as released, 1 / sqrt(D) as in the paper's pseudocode; ``None``
            leaves semantic relevance out.
        with_density: whether density counts.
    """
    logits = [row_logits(global_row(query, prefix, valid), key, scaling)]
    if semantic_scale is not None:
        logits.append(row_logits(global_row(value, prefix, valid), value, semantic_scale))
    mean = value[:, :, prefix:].float().mean(dim=1) if with_density else None
    return Glimpse(tuple(logits), mean)


@dataclass(frozen=True)
class Terms:
    """What several layers said about every patch.

    Attributes:
        weights: relation A and, where it counts, semantic relevance M: ``[B, layers, terms, N]``, each of them the mean
            over heads of a softmax over all tokens.
        shares: the same, divided by their sums over the (real) patches.
        density: R, ``[B, layers, N]``; ``None`` where it does not count.
        scores: ``[B, layers, N]``.
    """

    weights: Tensor
    shares: Tensor
    density: Tensor | None
    scores: Tensor


def terms_of(glimpses: Sequence[Glimpse], prefix: int, valid: Tensor | None = None) -> Terms:
    """Score the patches of several layers that saw the same tokens, and keep what the scores are made of.

    ``S = (A / sum A + M / sum M) * R`` (paper, eq. 1 to 5): relation A is the global token's attention, semantic
    relevance M the softmax over ``v_g . v_j``, each the mean over heads; density R is the L1 norm of the values' mean
    over heads. A term that was left out is left out.

    Args:
        glimpses: one of every layer, all with the same terms.
        prefix, valid: see :func:`global_row`.
    """
    terms = len(glimpses[0].logits)
    logits = torch.stack([row for one in glimpses for row in one.logits], dim=1)
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None, None, :], float("-inf"))
    weights = logits.softmax(dim=-1).mean(dim=2)[..., prefix:]
    shares = share(weights, None if valid is None else valid[:, None, prefix:])
    weights, shares = (part.reshape(len(part), len(glimpses), terms, -1) for part in (weights, shares))
    scores = shares.sum(dim=2) if terms > 1 else shares[:, :, 0]
    values = [one.value for one in glimpses if one.value is not None]
    density: Tensor | None = None
    if values:
        density = torch.linalg.vector_norm(torch.stack(values, dim=1), ord=1, dim=-1)
        scores = scores * density
    return Terms(weights, shares, density, scores)


def compare(glimpses: Sequence[Glimpse], prefix: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores ``[B, layers, N]`` of :func:`terms_of`, and the last layer's relation as a share, ``[B, N]``."""
    terms = terms_of(glimpses, prefix, valid)
    return terms.scores, terms.shares[:, -1, 0]
