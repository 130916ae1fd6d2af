"""Differences between two rows that answered the same questions, question by question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .evaluation import choose_questions
from .metrics import NORMAL_QUANTILE, right
from .rows import Identity, Row
from .split import TASKS, TaskQuestion, load_split

Hits = Mapping[str, Sequence[float]]
"""For every task, whether each question was answered rightly (or its score), in the order of the questions."""


@dataclass(frozen=True)
class Difference:
    """How much more one row answers than another, and the 95% interval of that, as shares in -1 to 1."""

    mean: float
    low: float
    high: float


def questions_of(identity: Identity) -> tuple[TaskQuestion, ...]:
    """The questions that rows were asked, in the order of their answers.

    Raises:
        ValueError: the split that ships has not as many questions of this choice as were asked.
    """
    return _questions(*(identity[name] for name in ("split", "tasks", "limit", "per_task", "questions")))


@lru_cache
def _questions(
    split: str, tasks: str, limit: int | None, per_task: int | None, wanted: int
) -> tuple[TaskQuestion, ...]:
    names = list(TASKS) if tasks == "all" else tasks.split(",")
    asked = choose_questions(load_split(split), names, limit, per_task)
    questions = tuple(question for _, _, some in asked for question in some)
    if len(questions) != wanted:
        raise ValueError(f"{wanted} questions of {split} ({tasks}) were asked, but this choice has {len(questions)}.")
    return questions


def hits_of(identity: Identity, row: Row) -> dict[str, list[bool]]:
    """Which questions a row answered rightly, by task.

    Raises:
        ValueError: it has not as many answers as there are questions.
    """
    questions = questions_of(identity)
    if len(questions) != len(row.answers):
        raise ValueError(f"{row.plan.method} has {len(row.answers)} answers to {len(questions)} questions.")
    hits: dict[str, list[bool]] = {}
    for question, answer in zip(questions, row.answers, strict=True):
        hits.setdefault(question.task, []).append(right(answer, question.answer))
    return hits


def paired_difference(first: Hits, second: Hits, tasks: Sequence[str] | None = None) -> Difference:
    """How much more ``first`` answers than ``second``, every task weighing the same.

    Each question's difference is 1, 0 or -1. Questions are independent draws within a task, so that the variance of the
    average is that of the tasks' means, each estimated from its questions' differences (with n - 1), over the square of
    the number of tasks. The interval is normal.

    Args:
        first: by task.
        second: of the same questions.
        tasks: those that count; all of ``first`` by default.

    Raises:
        ValueError: there is no task, or one has fewer than two questions, or not the same number in both.
    """
    chosen = list(first if tasks is None else tasks)
    means, variances = [], []
    for task in chosen:
        one, other = np.asarray(first[task], float), np.asarray(second[task], float)
        if len(one) != len(other) or len(one) < 2:
            raise ValueError(f"{task}: {len(one)} and {len(other)} questions can't be paired; two or more are needed.")
        means.append(float((one - other).mean()))
        variances.append(float((one - other).var(ddof=1)) / len(one))
    if not chosen:
        raise ValueError("a difference needs at least one task.")
    mean = sum(means) / len(chosen)
    half = NORMAL_QUANTILE * math.sqrt(sum(variances)) / len(chosen)
    return Difference(mean, mean - half, mean + half)
