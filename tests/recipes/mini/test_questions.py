"""Questions agree with what the scene holds."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from flowcut.tasks import TASKS
from flowcut.tasks import TaskQuestion as Question
from recipes.mini.questions import MOST_COUNTED, PER_SCENE, ask
from recipes.mini.render import render
from recipes.mini.scene import Scene
from recipes.mini.testset import choose
from recipes.mini.vocabulary import plural


@pytest.fixture(scope="module")
def asked(material) -> list[tuple[Scene, list[Question]]]:
    scenes = [render(material, "train", index)[1] for index in range(60)]
    return [(scene, ask(scene, np.random.default_rng(index))) for index, scene in enumerate(scenes)]


def test_every_task_is_asked_and_none_too_often(asked) -> None:
    seen = Counter(question.task for _, questions in asked for question in questions)
    assert set(seen) == set(TASKS)
    for _, questions in asked:
        for task, count in Counter(question.task for question in questions).items():
            assert count <= PER_SCENE[task]


def test_questions_of_a_scene_are_distinct(asked) -> None:
    for _, questions in asked:
        texts = [question.text for question in questions]
        assert len(set(texts)) == len(texts)


def test_answers_are_right(asked) -> None:
    for scene, questions in asked:
        names = Counter(item.name for item in scene.items if item.kind == "noun")
        for question in questions:
            about = [scene.items[index] for index in question.about]
            if question.task == "exist":
                assert (question.answer == "Yes") == bool(about)
                assert question.answer == "No" or about[0].name in question.text
                assert question.answer == "Yes" or not set(re.findall(r"\w+", question.text)) & set(names)
            if question.task == "count":
                assert question.answer == str(len(about)) == str(names[about[0].name])
                assert int(question.answer) <= MOST_COUNTED
                assert plural(about[0].name) in question.text
            if question.task == "where":
                assert question.answer == about[0].position
                assert sum(item.name == about[0].name for item in scene.items) == 1
            if question.task in {"name", "shape", "read"}:
                assert question.answer == about[0].name
            if question.task == "color":
                assert question.answer == about[0].color


def test_exist_is_balanced(asked) -> None:
    answers = Counter(q.answer for _, questions in asked for q in questions if q.task == "exist")
    assert 0.8 < answers["Yes"] / answers["No"] < 1.25


def test_the_test_split_fills_its_quotas(material) -> None:
    chosen = choose(material, share=0.04)
    counted = Counter(q.answer for entry in chosen for q in entry.questions if q.task == "count")
    assert set(counted) == {str(number) for number in range(1, MOST_COUNTED + 1)}
    assert len(set(counted.values())) == 1
    assert sum(q.task == "read" for entry in chosen for q in entry.questions) >= 12
    kinds = Counter(q.kind for entry in chosen for q in entry.questions)
    assert min(kinds[kind] for kind in ("present", "random", "popular", "adversarial")) > 0
    for entry in chosen:
        present = {item.name for item in entry.scene.items}
        for question in entry.questions:
            if question.kind == "popular":
                assert not set(re.findall(r"\w+", question.text)) & present
