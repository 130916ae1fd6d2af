"""Choosing among the images' columns inside the language model, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from ..algorithm.flow import row_logits
from ..algorithm.segments import best_within
from ..errors import NonFiniteError
from .views import DecoderView

Importance = Callable[[DecoderView], Tensor]
"""Given the view: ``[B, S]``, larger is better; read at the columns of images alone."""


def keep_best(view: DecoderView, importance: Importance, targets: Sequence[int]) -> Tensor:
    """The columns that go on: of every image the best, all text. Boolean ``[B, S]``.

    Args:
        view: what the layer computed.
        importance: ranks the columns.
        targets: how many visual tokens of each image stay.

    Raises:
        NonFiniteError: the importance is not finite. To know this, the host waits for the device.
    """
    scores = importance(view).masked_fill(view.image < 0, 0.0)
    check_ranked(view.layer, scores.sum())
    return best_within(scores, view.image, targets)


def check_ranked(layer: int, total: Tensor) -> None:
    """Refuse scores whose sum is not finite, as it is with NaN or infinity among them; the host waits for the device.

    Raises:
        NonFiniteError: names the layer.
    """
    if not isfinite(total.item()):
        raise NonFiniteError(
            f"Decoder layer {layer} produced NaN or infinite attention inputs, so its tokens cannot "
            "be ranked. Check the inputs and the model's dtype (float16 can overflow; try bfloat16)."
        )


def row_of_last(view: DecoderView, states: Tensor) -> Tensor:
    """The row of every sample's last prompt token in ``states`` ``[B, H, S, D]``: ``[B, H, 1, D]``, float32."""
    index = view.last[:, None, None, None].expand(*states.shape[:2], 1, states.shape[3])
    return states.gather(2, index).float()


def logits_of_last(view: DecoderView) -> Tensor:
    """``q_last . k * scaling`` for every head and column, ``[B, H, S]``."""
    row = row_of_last(view, view.query)
    heads, shared = row.shape[1], view.key.shape[1]
    if heads == shared:
        return row_logits(row, view.key, view.scaling)
    # The heads that share keys, as rows of one product.
    rows = row.reshape(len(row), shared, heads // shared, -1) * view.scaling
    return torch.matmul(rows, view.key.float().transpose(-1, -2)).flatten(1, 2)


def attention_of_last(view: DecoderView) -> Tensor:
    """Attention that every sample's last prompt token pays to the columns, mean over heads, ``[B, S]``.

    The softmax runs over all real tokens up to that one.
    """
    columns = torch.arange(view.image.shape[1], device=view.image.device)
    unseen = columns > view.last[:, None]
    if view.real is not None:
        unseen |= ~view.real
    logits = logits_of_last(view).masked_fill(unseen[:, None], float("-inf"))
    return logits.softmax(dim=-1).mean(dim=1)


def images_in(view: DecoderView) -> list[int]:
    """How many columns each image has; the host waits for the device."""
    images = torch.arange(len(view.targets), device=view.image.device)
    counts: list[int] = (view.image[..., None] == images).sum(dim=(0, 1)).tolist()
    return counts
