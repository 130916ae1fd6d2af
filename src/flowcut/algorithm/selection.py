"""Choosing tokens and keeping track of them. Pure functions; batches may be ragged.

A ragged choice is a pair: ``index`` ``[B, K]`` (positions among the tokens at hand, ascending; rows with
fewer than K real entries are filled up with 0) and ``counts``, the real entries of each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def top_in_order(scores: Tensor, counts: Sequence[int], valid: Tensor | None = None) -> Tensor:
    """The ``counts[b]`` best tokens of every row, in their original order; of equals the first are better.

    Args:
        scores: ``[B, N]``, finite at valid tokens.
        counts: how many tokens each row keeps.
        valid: ``[B, N]``; padding is never chosen.

    Returns:
        ``[B, max(counts)]``, int64, ascending, filled up with 0 where a row keeps fewer.
    """
    width = max(counts)
    if valid is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    return in_order(best_first(scores, width), counts, scores.shape[-1])


def best_first(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` best of every row of ``scores`` ``[..., N]``, the best first; int64 ``[..., count]``.

    Of equals the one that comes first is better. ``topk`` leaves that open, and devices differ.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def in_order(best: Tensor, counts: Sequence[int], tokens: int) -> Tensor:
    """The first ``counts[b]`` entries of every row of ``best`` ``[B, K]``, positions among ``tokens``, ascending.

    Returns:
        ``[B, K]``, filled up with 0 where a row keeps fewer.
    """
    width = best.shape[1]
    if min(counts) == width:
        return best.sort(dim=-1).values
    real = counts_mask(counts, width, best.device)
    return best.masked_fill(~real, tokens).sort(dim=-1).values.masked_fill(~real, 0)


def counts_mask(counts: Sequence[int], width: int, device: torch.device | None = None) -> Tensor:
    """``[B, width]``, true in the first ``counts[b]`` columns of row b."""
    lengths = torch.tensor(list(counts), device=device)
    return torch.arange(width, device=device)[None, :] < lengths[:, None]


def gather_tokens(states: Tensor, index: Tensor) -> Tensor:
    """``states[b, index[b]]`` for ``states`` ``[B, S, ...]`` and ``index`` ``[B, K]``: ``[B, K, ...]``."""
    if states.dim() == 2:
        return states.gather(1, index)
    # Whole rows: gather would look up every number by itself, which takes a CPU four times as long and more.
    if len(states) == len(index) == 1:
        return states[0].index_select(0, index[0])[None]
    return states[torch.arange(len(index), device=index.device)[:, None], index]


def put_tokens(base: Tensor, index: Tensor, states: Tensor) -> Tensor:
    """``base`` ``[B, S, ...]`` with ``states`` ``[B, K, ...]`` at the positions ``index`` ``[B, K]``; a new tensor."""
    if len(base) == len(index) == 1:
        return base[0].index_copy(0, index[0], states[0])[None]
    return base.index_put((torch.arange(len(index), device=index.device)[:, None], index), states)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Index maps in sequence: ``inner`` chooses among the tokens that ``outer`` chose. ``[B, K]``."""
    return outer.gather(1, inner)


def with_prefix(index: Tensor, prefix: int) -> Tensor:
    """Patch positions ``[B, K]`` as token positions behind ``prefix`` leading tokens that all stay."""
    if prefix <= 1:
        return nn.functional.pad(index + 1, (1, 0)) if prefix else index
    leading = torch.arange(prefix, device=index.device).expand(index.shape[0], prefix)
    return torch.cat([leading, index + prefix], dim=1)
