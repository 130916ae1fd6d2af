"""Which scenes the dialogues are about, what they ask, and how much each question weighs."""

from __future__ import annotations

from collections import Counter

import numpy as np

from flowcut.tasks import TaskQuestion as Question

from .features import read_descriptions
from .questions import all_counts, ask
from .scene import Scene
from .workspace import Workspace

MOST_ASKED = {"exist": 6, "name": 6, "where": 6, "count": 6, "color": 3, "shape": 5, "read": 0}
"""Most questions of each task in one dialogue. Reading isn't learned from these features, and not trained."""

MOST_ONES = 1
"""Most questions in one dialogue about numbers to be answered with "1"."""

COUNT_WEIGHTS = {"1": 1.0, "2": 2.5, "3": 2.0, "4": 3.0, "5": 5.0, "6": 10.0}
"""Weight in the loss of a question about a number, by its answer, where any other question has 1: they are few, and
scenes hold ones far more often than sixes."""

HERD_COUNT_WEIGHTS = {"1": 4.0, "2": 4.0, "3": 4.0, "4": 4.0, "5": 4.0, "6": 6.0}
"""The same for herds, so that in either kind of scene all numbers weigh about as much."""

RICH = 13
"""Scenes with so many questions are preferred, since the picture costs as much as eight questions."""


def chosen_questions(scene: Scene, random: np.random.Generator, others: int | None = None) -> list[Question]:
    """Questions for one dialogue: at most `MOST_ASKED` of each task, `MOST_ONES`, and `others` not about numbers."""
    several, ones = all_counts(scene, random)
    counts = (several + ones[:MOST_ONES])[: MOST_ASKED["count"]]
    taken: Counter[str] = Counter()
    rest = []
    questions = ask(scene, random)
    for question in questions:
        taken[question.task] += 1
        if question.task != "count" and taken[question.task] <= MOST_ASKED[question.task]:
            rest.append(question)
    return [*counts, *rest[:others]] or questions[:1]


def question_weights(scene: Scene, questions: list[Question]) -> list[float]:
    """How much each question weighs in the loss."""
    numbers = HERD_COUNT_WEIGHTS if scene.layout == "herd" else COUNT_WEIGHTS
    return [numbers[question.answer] if question.task == "count" else 1.0 for question in questions]


def training_scenes(workspace: Workspace, *, numbers: bool = False) -> list[int]:
    """Numbers of the scenes worth their time, in a fixed random order.

    All scenes that show something three times or oftener, but of herds only a quarter; half of those that show
    something twice, or have `RICH` questions; and a sixth of the rest.

    Args:
        numbers: only scenes that show something twice or oftener.
    """
    chosen = []
    for number, scene in read_descriptions(workspace, "train"):
        questions = ask(scene, np.random.default_rng(number))
        most = max((int(question.answer) for question in questions if question.task == "count"), default=0)
        if scene.layout == "herd":
            every = 4 if most > 2 else 0
        elif most > 1:
            every = 1 if most > 2 else 2
        else:
            every = 0 if numbers else 2 if len(questions) >= RICH else 6
        if every and number % every == 0:
            chosen.append(number)
    return [chosen[int(index)] for index in np.random.default_rng(0).permutation(len(chosen))]
