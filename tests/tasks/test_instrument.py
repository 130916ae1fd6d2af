"""The instrument check of flowcut-mini: its answers must hang on the patches that a question is about.

A slice of what ``recipes/mini/README.md`` reports for the whole split; thresholds leave room for other CPUs only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from shipped import require_mini

from flowcut import attach
from flowcut.checkpoints import mini
from flowcut.checkpoints.loading import LoadedModel, load_model
from flowcut.tasks import TaskQuestion, TaskScene, load_split, right
from flowcut.tasks.answering import answer_all
from flowcut.tasks.asking import MAX_NEW_TOKENS, RowPlan, scene_answers
from flowcut.tasks.evaluation import choose_questions
from flowcut.tasks.oracle import PATCHES, Oracle

SEEN = ("exist", "name", "where", "color", "shape")
"""What the model has learned well enough for something to be lost."""

Answering = Callable[[int, TaskScene, list[TaskQuestion]], list[str]]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    require_mini()
    return load_model(mini.MINI)


def hits(
    tasks: tuple[str, ...],
    answering: Answering,
    per_task: int = 4,
    among: Callable[[TaskScene, TaskQuestion], bool] = lambda scene, asked: True,
    at_most: int | None = None,
) -> tuple[int, int]:
    """Right answers among how many, of the first ``at_most`` of those questions that ``among`` wants."""
    results: list[bool] = []
    for number, scene, chosen in choose_questions(load_split(), tasks, per_task=per_task):
        questions = [asked for asked in chosen if among(scene, asked)]
        questions = questions[: None if at_most is None else at_most - len(results)]
        said = answering(number, scene, questions)
        results += [right(answer, asked.answer) for answer, asked in zip(said, questions, strict=True)]
    return sum(results), len(results)


def test_the_patches_asked_about_are_enough(loaded: LoadedModel) -> None:
    def answering(plan: RowPlan) -> Answering:
        return lambda number, scene, questions: scene_answers(loaded, plan, number, scene, questions, 16)

    uncut, total = hits(SEEN, answering(RowPlan("uncut")))
    kept, _ = hits(SEEN, answering(RowPlan("oracle", 64)))
    assert uncut >= 0.5 * total, (uncut, total)
    assert kept >= 0.95 * uncut, (kept, uncut, total)


def hidden(scene: TaskScene, asked: TaskQuestion) -> bool:
    """Whether the answer goes with its patches: nothing else in the picture is asked for that has the same."""
    others = [question for question in scene.questions if question.task == asked.task and question.about != asked.about]
    return all(question.answer != asked.answer for question in others)


@pytest.mark.parametrize("task", ["name", "color"])
def test_without_the_patches_asked_about_it_only_guesses(loaded: LoadedModel, task: str) -> None:
    def blind(number: int, scene: TaskScene, questions: list[TaskQuestion]) -> list[str]:
        said = []
        for question in questions:
            rest = np.flatnonzero(~scene.patches(question).reshape(PATCHES))
            with attach(loaded.model, Oracle(target_num=len(rest), patches=tuple(rest.tolist()))):
                said += answer_all(
                    loaded,
                    scene.picture(),
                    [question.text],
                    batch_size=1,
                    max_new_tokens=MAX_NEW_TOKENS,
                    share_prefix=True,
                )
        return said

    blindly, total = hits((task,), blind, per_task=20, among=hidden, at_most=9)
    assert total >= 6
    assert blindly <= 0.25 * total, (blindly, total)
