"""Shows the language model where a question's answer is: a loss on a few heads' attention.

Without it, a few hundred dialogues teach it where the nine positions are, but not how to find one noun among
140: each is asked for too seldom. The renderer knows the patches, so some heads are told to look at them. No
token is dropped, and all other heads are left to the answers' loss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcut.tasks import TaskQuestion

from .scene import GRID

WORD_HEADS = ((2, 4), (4, 1), (6, 3), (7, 7), (8, 0), (8, 1), (9, 0), (9, 2))
"""Layer and head of those guided at the word that is asked for."""

ANSWER_HEADS = ((14, 3), (15, 6), (15, 7), (17, 3), (17, 4), (18, 6), (21, 8))
"""Layer and head of those guided at the place that predicts the answer.

All of these already preferred patches of the noun in question before any adapter was trained, right after the
alignment: language models have heads that look for earlier occurrences of a word.
"""

_SMALL = 1e-3
_ASKED_FOR = re.compile(
    r"(?:Is there an?|Do you see an?|How many|Count the|(?:Where|What color) (?:is|do you see) the) (\w+)"
)


def asked_for(text: str) -> str:
    """The question up to and with the word that tells what to look for: a noun, or the last word."""
    found = _ASKED_FOR.match(text)
    return text[: found.end()] if found else text.rstrip("?.")


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


def guidance(attentions: Sequence[Tensor], looks: Tensor, visual: slice, asked: Tensor) -> Tensor:
    """Mean over questions and heads of -log of the attention that is where it should be.

    That is on the patches asked about, or anywhere but on the picture where nothing there is asked about.

    Args:
        attentions: for each layer [1, heads, length, length] attention probabilities.
        looks: [questions, 2] the places of the word that is asked for and of the token before the answer.
        visual: where the picture's tokens lie.
        asked: [questions, patches] as from `asked_patches`.
    """
    present = asked.sum(dim=1) > 0
    losses = []
    for column, heads in enumerate((WORD_HEADS, ANSWER_HEADS)):
        for layer, head in heads:
            seen = attentions[layer][0, head, looks[:, column], visual].float()
            hit = torch.where(present, (seen * asked).sum(dim=-1), 1 - seen.sum(dim=-1))
            losses.append(-torch.log(hit.clamp(min=0) + _SMALL).mean())
    return torch.stack(losses).mean()
