"""What the patches of things say of their number: how well the tower counts, whatever the language model does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowcut.tasks import TaskQuestion as Question

from .alignment import DenseAlignment
from .oracle import Masks
from .tower import Upper


def vote(scores: Tensor, touched: Tensor) -> int:
    """The number that things name together: every thing has one voice, shared evenly by its patches.

    Args:
        scores: [576, 6] logits of the numbers, as from `DenseAlignment.logits`.
        touched: [things, 576] bool; things without a patch have no voice.
    """
    voices = [scores.log_softmax(dim=-1)[mine].mean(dim=0) for mine in touched if mine.any()]
    return int(torch.stack(voices).mean(dim=0).argmax()) + 1


@torch.inference_mode()
def number_votes(
    upper: Upper,
    projector: nn.Module,
    alignment: DenseAlignment,
    scenes: Iterable[tuple[Tensor, Masks, tuple[Question, ...]]],
) -> dict[str, list[bool]]:
    """For each number, question by question of `count`, whether the things asked about vote for it.

    Args:
        upper: the tower's adapted blocks.
        projector: behind them.
        alignment: compares projected patches with words.
        scenes: stems, masks and questions, as from `encode_split`.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for stem, touched, questions in scenes:
        counts = [question for question in questions if question.task == "count"]
        if counts:
            scores = alignment.logits(projector(upper(stem[None])[0]), "count")
            for question in counts:
                things = torch.from_numpy(touched[list(question.about)]).flatten(1)
                right[question.answer].append(str(vote(scores, things)) == question.answer)
    return dict(sorted(right.items()))
