"""Shows the language model where a question's answer is: a loss on a few heads' attention.

Without it, a few hundred dialogues teach it where the nine positions are, but not how to find one noun among
140: each is asked for too seldom. The renderer knows the patches, so some heads are told to look at them.
No token is dropped; the heads not named here, and how much of its attention a head spends on the picture, are
left to the answers' loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcut.tasks import TaskQuestion

from .dialogue import Packed
from .scene import GRID

HEADS = slice(0, 3)
"""The guided heads of a layer; in SmolLM2-135M these three share one key and value head."""

QUESTION_LAYERS = range(6, 14)
"""Layers in which the question's last word is guided."""

ANSWER_LAYERS = range(12, 22)
"""Layers in which the place that predicts the answer is guided."""

_SMALL = 1e-4


def asked_patches(touched: NDArray[np.bool_], questions: Sequence[TaskQuestion], *, halved: bool) -> Tensor:
    """[questions, patches] float: 1 where something is visible that the question is about.

    Args:
        touched: [items, 24, 24] the patches in which each item is visible.
        questions: all about this scene.
        halved: whether patches are averaged 2 x 2.
    """
    masks = np.stack([touched[list(question.about)].any(axis=0) for question in questions])
    if halved:
        masks = masks.reshape(-1, GRID // 2, 2, GRID // 2, 2).any(axis=(2, 4))
    return torch.from_numpy(masks.reshape(len(questions), -1)).float()


def guidance(attentions: Sequence[Tensor], packed: Packed, asked: Tensor) -> Tensor:
    """Mean over questions, layers and heads of -log of the share of visual attention that is well placed.

    Args:
        attentions: for each layer [1, heads, length, length] attention probabilities.
        packed: the dialogue.
        asked: [questions, patches] as from `asked_patches`; questions about nothing visible are left out.
    """
    present = asked.sum(dim=1) > 0
    if not present.any():
        return torch.zeros(())
    losses = []
    for column, layers in ((0, QUESTION_LAYERS), (1, ANSWER_LAYERS)):
        rows = packed.looks[present, column]
        for layer in layers:
            seen = attentions[layer][0, HEADS, rows, packed.visual].float()
            hit = (seen * asked[present]).sum(dim=-1)
            losses.append(-torch.log((hit + _SMALL) / (seen.sum(dim=-1) + _SMALL)).mean())
    return torch.stack(losses).mean()
