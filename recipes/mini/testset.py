"""Chooses the fixed test split: enough questions for every task, answers spread where guessing would pay."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from flowcut.tasks import TaskQuestion as Question

from .material import Material, Split
from .questions import ask
from .render import render
from .scene import Scene
from .vocabulary import with_article

VERSION = 1
"""Changes whenever the test split does."""

_QUOTAS = {
    "read": 300,
    **{f"count {number}": 50 for number in range(1, 7)},
    "close": 24,
    "large": 40,
}

_PATIENCE = 3000
"""So many scenes are looked at before one that fills a single gap is taken: fewer pictures do."""


_POPULAR = 30
_QUESTION_SEED = 977


@dataclass(frozen=True)
class TestScene:
    """A scene of the test split.

    Attributes:
        index: its number in the split's stream of scenes.
        picture: 336 x 336 RGB.
        scene: what it shows.
        questions: what is asked about it.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    index: int
    picture: Image.Image
    scene: Scene
    questions: tuple[Question, ...]


def choose(material: Material, split: Split = "test", share: float = 1.0) -> list[TestScene]:
    """Go through the split's scenes in order and keep those that help to fill a quota.

    Args:
        split: "test", "new" for scenes of held-out cut-outs, or "validation" for decisions in training.
        share: scales the quotas; less than 1 for a quick look.

    Returns:
        the chosen scenes, the negatives of `exist` in equal parts random, popular and adversarial.
    """
    missing = {key: round(quota * share) for key, quota in _QUOTAS.items()}
    chosen: list[TestScene] = []
    index = 0
    while any(count > 0 for count in missing.values()):
        picture, scene = render(material, split, index)
        questions = ask(scene, np.random.default_rng((_QUESTION_SEED, index)))
        keys = _keys(scene, questions)
        gaps = [key for key in keys if missing.get(key, 0) > 0]
        enough = 2 if index < _PATIENCE * share else 1
        if (len(gaps) >= enough and len(questions) >= 8) or set(gaps) & {"close", "large"}:
            questions = [q for q in questions if q.task != "count" or missing.get(f"count {q.answer}", 0) > 0]
            for key in _keys(scene, questions):
                if key in missing:
                    missing[key] -= 1
            chosen.append(TestScene(index, picture, scene, tuple(questions)))
        index += 1
    return _with_popular(chosen)


def _keys(scene: Scene, questions: list[Question]) -> list[str]:
    keys = [scene.layout]
    keys += ["read" for question in questions if question.task == "read"]
    keys += [f"count {question.answer}" for question in questions if question.task == "count"]
    return keys


def _with_popular(chosen: list[TestScene]) -> list[TestScene]:
    """Replace every third negative by one of the nouns that the test split shows most."""
    frequency = Counter(item.name for entry in chosen for item in entry.scene.items if item.kind == "noun")
    popular = [name for name, _ in sorted(frequency.items(), key=lambda pair: (-pair[1], pair[0]))[:_POPULAR]]
    turn = 0
    replaced = []
    for entry in chosen:
        present = {item.name for item in entry.scene.items}
        questions = []
        for question in entry.questions:
            if question.task == "exist" and question.answer == "No":
                turn += 1
                absent = [name for name in popular if name not in present]
                if turn % 3 == 0 and absent:
                    text = f"Is there {with_article(absent[turn % len(absent)])} in the picture?"
                    question = dataclasses.replace(question, text=text, kind="popular")
            questions.append(question)
        replaced.append(dataclasses.replace(entry, questions=tuple(questions)))
    return replaced
