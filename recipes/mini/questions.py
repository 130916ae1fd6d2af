"""Questions about a scene, with their answers and the items they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from flowcut.tasks import TaskQuestion as Question

from .scene import Item, Scene
from .vocabulary import noun_groups, plural, with_article

PER_SCENE = {"exist": 12, "name": 9, "where": 9, "count": 4, "color": 3, "shape": 6, "read": 1}
"""Most questions of a task about one scene."""

CLEAR_MARGIN = 9.0
"""Positions are asked only of items whose centre is at least so far, in pixels, from a cell's border."""

MOST_COUNTED = 6
"""Largest number that is asked for."""


def ask(scene: Scene, random: np.random.Generator) -> list[Question]:
    """All the questions we put about a scene, at most `PER_SCENE` of each task, in random order."""
    questions = []
    for task, make in _MAKERS.items():
        made = make(scene, random)
        order = random.permutation(len(made))
        questions += _balanced([made[int(index)] for index in order], PER_SCENE[task])
    return [questions[int(index)] for index in random.permutation(len(questions))]


def at_position(name: str) -> str:
    """The position as it stands in a question: "at the top left", "in the middle"."""
    if name == "middle":
        return "in the middle"
    return f"on the {name}" if name in {"left", "right"} else f"at the {name}"


def _balanced(questions: list[Question], most: int) -> list[Question]:
    """Cut to `most`; for yes and no take the same number of each."""
    if not questions or questions[0].task != "exist":
        return questions[:most]
    yes = [question for question in questions if question.answer == "Yes"]
    no = [question for question in questions if question.answer == "No"]
    return yes[: most // 2] + no[: min(most // 2, max(len(yes), 1))]


def _visible(scene: Scene, kind: str) -> list[tuple[int, Item]]:
    return [(index, item) for index, item in enumerate(scene.items) if item.kind == kind and scene.touched[index].any()]


def _single(pairs: list[tuple[int, Item]]) -> list[tuple[int, Item]]:
    counts = Counter(item.name for _, item in pairs)
    return [(index, item) for index, item in pairs if counts[item.name] == 1]


def _exist(scene: Scene, random: np.random.Generator) -> list[Question]:
    present = scene.by_noun()
    made = [_is_there(name, "Yes", tuple(where), "present", random) for name, where in present.items()]
    groups = noun_groups()
    absent = [name for name in groups if name not in present]
    near = [name for name in absent if groups[name] in {groups[other] for other in present}]
    for turn in range(len(present) + 1):
        kind = "adversarial" if turn % 2 and near else "random"
        pool = near if kind == "adversarial" else absent
        made.append(_is_there(pool[int(random.integers(len(pool)))], "No", (), kind, random))
    return list({question.text: question for question in made}.values())


def _is_there(name: str, answer: str, about: tuple[int, ...], kind: str, random: np.random.Generator) -> Question:
    forms = ("Is there {} in the picture?", "Is there {}?", "Do you see {}?")
    text = forms[int(random.integers(len(forms)))].format(with_article(name))
    return Question("exist", text, answer, about, kind)


def all_counts(scene: Scene, random: np.random.Generator) -> tuple[list[Question], list[Question]]:
    """How often each noun of a scene is there: those that are there several times up to `MOST_COUNTED`, and once."""
    if scene.layout == "close":
        return [], []
    forms = ("How many {} are there?", "How many {} do you see?", "Count the {}.")
    made = [
        Question("count", forms[int(random.integers(3))].format(plural(name)), str(len(where)), tuple(where))
        for name, where in scene.by_noun().items()
        if len(where) <= MOST_COUNTED
    ]
    several = [question for question in made if question.answer != "1"]
    return several, [question for question in made if question.answer == "1"]


def _alone_in_cell(scene: Scene) -> list[tuple[int, Item]]:
    """Items clearly inside a ninth of the picture in which no other item is centred or fills much."""
    found = []
    for index, item in enumerate(scene.items):
        row, column = item.cell
        cell = np.s_[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        others = sum(int((scene.owner[cell] == other).sum()) for other in range(len(scene.items)) if other != index)
        shared = any(other.cell == item.cell for k, other in enumerate(scene.items) if k != index)
        if item.margin >= CLEAR_MARGIN and not shared and others <= (scene.owner[cell] == index).sum() * 0.5:
            found.append((index, item))
    return found


def _name(scene: Scene, random: np.random.Generator) -> list[Question]:
    if scene.layout == "close":
        return [Question("name", "What is in the picture?", scene.items[0].name, (0,))]
    forms = ("What is {}?", "What object is {}?", "What do you see {}?")
    return [
        Question("name", forms[int(random.integers(3))].format(at_position(item.position)), item.name, (index,))
        for index, item in _alone_in_cell(scene)
        if item.kind == "noun"
    ]


def _where(scene: Scene, random: np.random.Generator) -> list[Question]:
    if scene.layout == "close":
        return []
    things = _single(_visible(scene, "noun")) + _single(_visible(scene, "shape"))
    forms = ("Where is the {}?", "Where do you see the {}?")
    return [
        Question("where", forms[int(random.integers(2))].format(item.name), item.position, (index,))
        for index, item in things
        if item.margin >= CLEAR_MARGIN
    ]


def _count(scene: Scene, random: np.random.Generator) -> list[Question]:
    several, ones = all_counts(scene, random)
    return several + (ones[:1] if random.random() < 0.4 else [])  # or "1" would be most answers


def _color(scene: Scene, random: np.random.Generator) -> list[Question]:
    return [
        Question("color", f"What color is the {item.name}?", item.color, (index,))
        for index, item in _single(_visible(scene, "shape"))
    ]


def _shape(scene: Scene, random: np.random.Generator) -> list[Question]:
    made = [
        Question("shape", f"What shape is {item.color}?", item.name, (index,))
        for index, item in _visible(scene, "shape")
    ]
    forms = ("What shape is {}?", "Which shape is {}?")
    return made + [
        Question("shape", forms[int(random.integers(2))].format(at_position(item.position)), item.name, (index,))
        for index, item in _alone_in_cell(scene)
        if item.kind == "shape"
    ]


def _read(scene: Scene, random: np.random.Generator) -> list[Question]:
    forms = ("What word is written?", "What does the sign say?", "Read the word.")
    return [
        Question("read", forms[int(random.integers(3))], item.name, (index,))
        for index, item in _single(_visible(scene, "word"))
    ]


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], list[Question]]] = {
    "exist": _exist,
    "name": _name,
    "where": _where,
    "count": _count,
    "color": _color,
    "shape": _shape,
    "read": _read,
}
