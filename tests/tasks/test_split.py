"""The fixed split reads back as written, and the shipped one is what the recipe says."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowcut.tasks import TASKS, TaskQuestion, TaskScene, TaskSplit, load_split, read_split, write_split
from recipes.mini.vocabulary import POSITIONS


@pytest.fixture
def split() -> TaskSplit:
    encoded = io.BytesIO()
    Image.new("RGB", (336, 336), (200, 30, 30)).save(encoded, "WEBP")
    touched = np.zeros((2, 24, 24), bool)
    touched[0, :3, :3] = True
    touched[1, 10, 10] = True
    questions = (
        TaskQuestion("exist", "Is there a cat?", "No", (), "random"),
        TaskQuestion("where", "Where is the dog?", "top left", (0,), ""),
    )
    items = (("noun", "dog", ""), ("shape", "star", "red"))
    return TaskSplit("tiny", (TaskScene("0.webp", encoded.getvalue(), items, touched, questions),))


def test_round_trip(split: TaskSplit, tmp_path: Path) -> None:
    write_split(split, tmp_path / "tiny.zip")
    with (tmp_path / "tiny.zip").open("rb") as file:
        again = read_split(file, "tiny")
    scene, stored = again.scenes[0], split.scenes[0]
    assert (scene.name, scene.encoded, scene.items, scene.questions) == (
        stored.name, stored.encoded, stored.items, stored.questions,
    )  # fmt: skip
    assert np.array_equal(scene.touched, stored.touched)
    assert scene.picture().size == (336, 336)


def test_same_split_same_bytes(split: TaskSplit, tmp_path: Path) -> None:
    write_split(split, tmp_path / "a.zip")
    write_split(split, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_patches_of_a_question(split: TaskSplit) -> None:
    scene = split.scenes[0]
    absent, present = scene.questions
    assert scene.patches(present).sum() == 9
    assert scene.patches(absent).sum() == 0


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "future.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("split.json", json.dumps({"format": 99, "scenes": []}))
    with path.open("rb") as file, pytest.raises(ValueError, match="format 99"):
        read_split(file, "future")


def test_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match="test-v1"):
        load_split("training")


def test_the_shipped_split_has_enough_of_everything() -> None:
    split = load_split()
    asked = Counter(question.task for scene in split.scenes for question in scene.questions)
    assert set(asked) == set(TASKS)
    assert min(asked.values()) >= 300
    kinds = Counter(question.kind for _, question in split.questions("exist"))
    assert min(kinds[kind] for kind in ("random", "popular", "adversarial")) >= 300
    counts = Counter(question.answer for _, question in split.questions("count"))
    assert set(counts) == {"1", "2", "3", "4", "5", "6"}
    assert len(set(counts.values())) == 1
    answers = Counter(question.answer for _, question in split.questions("exist"))
    assert 0.9 < answers["Yes"] / answers["No"] < 1.1


def test_every_shipped_question_is_about_something_visible() -> None:
    for scene in load_split().scenes:
        for question in scene.questions:
            absent = question.task == "exist" and question.answer == "No"
            assert scene.patches(question).any() != absent


def test_the_new_scenes_have_enough_of_everything_and_are_others() -> None:
    split = load_split("new-v1")
    asked = Counter(question.task for scene in split.scenes for question in scene.questions)
    assert set(asked) == set(TASKS) and min(asked.values()) >= 60
    rendered = {scene.encoded for scene in load_split().scenes}
    assert not rendered & {scene.encoded for scene in split.scenes}


def test_photographs_have_questions_and_no_masks() -> None:
    split = load_split("photo-v2")
    assert len(split.scenes) == 76
    for scene in split.scenes:
        assert scene.picture().size == (336, 336) and not scene.items and scene.touched.shape == (0, 24, 24)
        assert len(scene.questions) >= 3 and {question.task for question in scene.questions} <= set(TASKS)
        assert len({question.text for question in scene.questions}) == len(scene.questions)


def test_photographs_are_asked_about_in_balance() -> None:
    split = load_split("photo-v2")
    answers = {
        task: Counter(question.answer for _, question in split.questions(task))
        for task in ("exist", "name", "where", "count", "color")
    }
    assert (
        sum(total.total() for total in answers.values()) == sum(len(scene.questions) for scene in split.scenes) >= 300
    )
    assert min(total.total() for total in answers.values()) >= 40
    assert abs(answers["exist"]["Yes"] - answers["exist"]["No"]) <= 1
    assert set(answers["where"]) <= {place for row in POSITIONS for place in row} and set(answers["count"]) <= set(
        "12345"
    )
    share = {task: max(total.values()) / total.total() for task, total in answers.items()}
    assert share["name"] < 0.1 and max(share[task] for task in ("where", "count", "color")) < 0.5
