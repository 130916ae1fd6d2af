"""How answers are judged: exact match, accuracy with intervals, and POPE's figures for yes and no."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
NORMAL_QUANTILE = 1.959963984540054
"""The normal distribution's 97.5% point: half of a 95% interval, in standard errors."""


def normalise(answer: str) -> str:
    """The answer as it is compared: lower case, one space between words, no article, no final stop."""
    plain = " ".join(answer.lower().split()).rstrip(".!")
    return _ARTICLE.sub("", plain)


def right(answer: str, wanted: str) -> bool:
    """Whether an answer matches the wanted one exactly after `normalise`."""
    return normalise(answer) == normalise(wanted)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of a share.

    Args:
        hits: how often it was so.
        total: out of how many.

    Returns:
        lower and upper end, in 0 to 1.

    Raises:
        ValueError: `total` is not positive, or `hits` is not between 0 and `total`.
    """
    if total <= 0 or not 0 <= hits <= total:
        raise ValueError(f"an interval needs 0 <= hits <= total and a positive total, got {hits} of {total}")
    share = hits / total
    scale = 1 + NORMAL_QUANTILE**2 / total
    middle = (share + NORMAL_QUANTILE**2 / (2 * total)) / scale
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / total + (NORMAL_QUANTILE / (2 * total)) ** 2) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on one task.

    Attributes:
        task: the task's name.
        questions: how many were asked.
        accuracy: share of exact answers, 0 to 1.
        interval: Wilson's 95% interval of the accuracy.
        extra: further figures of the task's namesake, 0 to 1: for yes-or-no tasks `f1`, `precision`, `recall`
            (of "yes") and `yes_rate`.
    """

    task: str
    questions: int
    accuracy: float
    interval: tuple[float, float]
    extra: dict[str, float] = field(default_factory=dict)


def score(task: str, answers: Sequence[str], wanted: Sequence[str]) -> TaskScore:
    """Judge all answers to one task.

    Args:
        task: its name; figures for yes and no are added where all wanted answers are one of these.
        answers: what the model said.
        wanted: what is right, in the same order.

    Raises:
        ValueError: there are no questions, or not as many answers as questions.
    """
    if len(answers) != len(wanted) or not wanted:
        raise ValueError(f"{task}: {len(answers)} answers to {len(wanted)} questions can't be judged")
    hits = sum(right(answer, truth) for answer, truth in zip(answers, wanted, strict=True))
    binary = {normalise(truth) for truth in wanted} <= {"yes", "no"}
    return TaskScore(
        task,
        len(wanted),
        hits / len(wanted),
        wilson(hits, len(wanted)),
        _yes_and_no(answers, wanted) if binary else {},
    )


def _yes_and_no(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    said = [normalise(answer) == "yes" for answer in answers]
    true = [normalise(truth) == "yes" for truth in wanted]
    both = sum(a and b for a, b in zip(said, true, strict=True))
    precision = both / sum(said) if any(said) else 0.0
    recall = both / sum(true) if any(true) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "yes_rate": sum(said) / len(said)}
