"""Measures the trained model on the test split: uncut, and with patches chosen by hand or by oracle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from flowcut.tasks import TASKS, wilson
from flowcut.tasks import TaskQuestion as Question

from .oracle import Masks, keep_only, remove_only
from .scene import GRID
from .student import Student, answered

Choice = Callable[[Masks, tuple[int, ...], int], Tensor]
"""Kept patch indices for the masks of a scene, the items that a question is about, and the scene's number."""


def keep_all(touched: Masks, about: tuple[int, ...], number: int) -> Tensor:
    """Every patch."""
    return torch.arange(GRID * GRID)


def keep_random(budget: int) -> Choice:
    """The same `budget` random patches for all questions of a scene."""

    def choose(touched: Masks, about: tuple[int, ...], number: int) -> Tensor:
        random = np.random.default_rng((71, number))
        return torch.from_numpy(np.sort(random.permutation(GRID * GRID)[:budget]))

    return choose


def keep_oracle(budget: int, *, fill: bool) -> Choice:
    """What the question is about, filled up with random patches or not."""

    def choose(touched: Masks, about: tuple[int, ...], number: int) -> Tensor:
        return keep_only(touched, about, budget, np.random.default_rng((72, number)), fill=fill)

    return choose


def drop_oracle(touched: Masks, about: tuple[int, ...], number: int) -> Tensor:
    """Everything but what the question is about."""
    return remove_only(touched, about)


@torch.inference_mode()
def evaluate(
    student: Student,
    scenes: Iterable[tuple[Tensor, Masks, tuple[Question, ...]]],
    choose: Choice,
    *,
    original_positions: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[bool]]:
    """Answer every question with the patches that `choose` keeps.

    Questions about the same kept patches share one pass; that they can't see each other makes the result the
    same as one by one.

    Args:
        scenes: stems [577, 384] of the tower, the masks of its items, and the questions.
        original_positions: whether kept patches keep their place among all 576; else they move together.
        progress: called with the number of scenes done.

    Returns:
        for each task, question by question, whether greedy decoding gives exactly the answer.
    """
    student.eval()
    results: dict[str, list[bool]] = defaultdict(list)
    for number, (stem, touched, questions) in enumerate(scenes):
        groups: dict[tuple[int, ...], list[Question]] = defaultdict(list)
        for question in questions:
            groups[tuple(choose(touched, question.about, number).tolist())].append(question)
        projected = student.projector(student.see(stem))
        for kept, asked in groups.items():
            places = torch.tensor(kept, dtype=torch.long)
            packed = student.packer.pack(asked, places if original_positions else torch.arange(len(places)))
            logits, wanted = student.logits(packed, projected[places])
            branch = packed.branch[packed.labels != -100]
            for task, right in answered(packed, logits.argmax(dim=-1) == wanted, branch).items():
                results[task] += right
        if progress:
            progress(number + 1)
    return dict(results)


def summary(results: dict[str, list[bool]], order: Iterable[str] = TASKS) -> list[tuple[str, int, float, float, float]]:
    """Rows of task, or another key of the results, number of questions, accuracy, and the ends of its interval."""
    rows = []
    for key in order:
        if results.get(key):
            right, total = sum(results[key]), len(results[key])
            rows.append((key, total, right / total, *wilson(right, total)))
    return rows
