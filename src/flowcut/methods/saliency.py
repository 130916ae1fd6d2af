"""How much attention the patches of an image receive in one vision layer. Pure functions, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from ..algorithm import flow
from ..errors import NonFiniteError
from .views import LayerView, Selection


def saliency(view: LayerView) -> Tensor:
    """Attention of the CLS token to every patch, or to every group the mean over its patches; ``[B, N]``.

    Mean over heads. Where the tower has no CLS token: the attention a patch receives from all of them, on average.
    """
    valid = None if view.valid is None else view.valid[:, view.prefix :]
    if view.prefix:
        received = flow.relation(view.query, view.key, view.scaling, view.prefix, view.valid)
    else:
        received = attention_received(view.query, view.key, view.scaling, view.valid)
    if valid is not None:
        received = received.masked_fill(~valid, 0.0)
    return flow.group_means(received, view.group)


def attention_received(query: Tensor, key: Tensor, scaling: float, valid: Tensor | None = None) -> Tensor:
    """``mean_h mean_i softmax_j(q_i . k_j)``: what every token receives, ``[B, S]``.

    Args:
        query, key: ``[B, H, S, D]``.
        scaling: factor on the dot products.
        valid: ``[B, S]``, true for real tokens.
    """
    total = torch.zeros(query.shape[0], query.shape[2], device=query.device)
    for head in range(query.shape[1]):
        # Head by head, so that no [B, H, S, S] map is ever held.
        logits = torch.matmul(query[:, head].float() * scaling, key[:, head].float().mT)
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None], float("-inf"))
        weights = logits.softmax(dim=-1)
        if valid is not None:
            weights = weights.masked_fill(~valid[..., None], 0.0)
        total += weights.sum(dim=1)
    tokens = query.shape[2] if valid is None else valid.sum(dim=1, keepdim=True)
    return total / (query.shape[1] * tokens)


def mean_keys(view: LayerView) -> Tensor:
    """The keys of every patch, mean over heads; those of a group side by side: ``[B, N, D * group]``."""
    keys = view.key[:, :, view.prefix :].float().mean(dim=1)
    return keys.reshape(len(keys), -1, view.group * keys.shape[-1])


def unit(states: Tensor) -> Tensor:
    """``states`` ``[..., width]`` scaled to length 1, in float32; a row of zeros stays."""
    return torch.nn.functional.normalize(states.float(), dim=-1)


def check_finite(layer: int, *values: Tensor) -> None:
    """Refuse to rank what is not finite; the host waits for the device once.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    # One number tells of each: with NaN or an infinite value among them, a sum is not finite.
    sums: list[float] = torch.stack([value.sum(dtype=torch.float32) for value in values]).tolist()
    if not all(map(isfinite, sums)):
        raise NonFiniteError(
            f"Vision layer {layer} produced NaN or infinite values, so its tokens cannot be ranked. Check the pixel "
            "values and the model's dtype (float16 can overflow; try bfloat16)."
        )


def ragged(rows: Sequence[Tensor]) -> Selection:
    """A selection from the ascending positions that each image keeps."""
    counts = tuple(len(row) for row in rows)
    index = rows[0].new_zeros(len(rows), max(counts))
    for number, row in enumerate(rows):
        index[number, : len(row)] = row
    return Selection(index, counts)
