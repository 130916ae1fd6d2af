"""Choosing among an image's columns inside the language model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..algorithm.flow import head_mean_softmax
from ..algorithm.selection import top_in_order
from ..errors import NonFiniteError
from .views import DecoderView

Importance = Callable[[DecoderView, int, Tensor], Tensor]
"""Given the view, a sample and the columns of one of its images: ``[1, N]``, larger is better."""


def keep_best(view: DecoderView, importance: Importance, targets: tuple[int, ...]) -> Tensor:
    """The columns that go on: of every image the best, all text. Boolean ``[B, S]``.

    Args:
        view: what the layer computed.
        importance: ranks the columns of one image.
        targets: how many visual tokens of each image stay.

    Raises:
        NonFiniteError: the importance is not finite.
    """
    keep = torch.ones_like(view.real)
    for row in range(len(keep)):
        for image in sorted(set(view.image[row].tolist()) - {-1}):
            columns = (view.image[row] == image).nonzero()[:, 0]
            if len(columns) <= targets[image]:
                continue
            scores = importance(view, row, columns)
            if not bool(torch.isfinite(scores).all()):
                raise NonFiniteError(
                    f"Decoder layer {view.layer} produced NaN or infinite attention inputs, so its tokens cannot "
                    "be ranked. Check the inputs and the model's dtype (float16 can overflow; try bfloat16)."
                )
            chosen = top_in_order(scores, [targets[image]])
            keep[row, columns] = False
            keep[row, columns[chosen[0]]] = True
    return keep


def attention_of_last(view: DecoderView, row: int, columns: Tensor) -> Tensor:
    """Attention that the sample's last prompt token pays to ``columns``, mean over heads, ``[1, N]``.

    The softmax runs over all real tokens up to that one.
    """
    last = int(view.last[row])
    groups = view.query.shape[1] // view.key.shape[1]
    query = view.query[row : row + 1, :, last : last + 1].float()
    key = view.key[row : row + 1, :, : last + 1].repeat_interleave(groups, dim=1)
    weights = head_mean_softmax(query, key, view.scaling, view.real[row : row + 1, : last + 1])
    return weights[:, columns]
