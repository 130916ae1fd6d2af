"""The table of kept patches: where they lie, and what is answered by how many are left of what is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from kept_patches import BUDGET, METHODS, asked_scenes, read
from measured import markdown, named, percent, row_of
from measured_tables import POSITIONS, table

from flowcut.tasks.metrics import right
from flowcut.tasks.split import GRID

LEFT = ("none left", "1 or 2", "3 or more")


@dataclass(frozen=True)
class Left:
    """A question about one thing or shape: how many of its patches are left, and whether the answer is right."""

    task: str
    patches: int
    right: bool


@lru_cache
def left_of(method: str, positions: str) -> tuple[Left, ...]:
    """What is left for every question that asks for a name, a shape or a colour."""
    kept, found = read()[method], []
    answers = iter(row_of("budgets", method, BUDGET, positions).answers)
    for number, scene, questions in asked_scenes():
        for question in questions:
            correct = right(next(answers), question.answer)
            if question.task in ("name", "shape", "color"):
                patches = int(scene.patches(question).reshape(-1)[list(kept[number])].sum())
                found.append(Left(question.task, patches, correct))
    return tuple(found)


def on_things(method: str | None) -> float:
    """The mean share of kept patches on which a thing or shape is visible; of all patches without a method."""
    shares = []
    for number, scene, _ in asked_scenes():
        covered = scene.touched.any(axis=0).reshape(-1)
        shares.append(covered[list(range(GRID * GRID)) if method is None else list(read()[method][number])].mean())
    return float(np.mean(shares))


def nothing_left(method: str, task: str) -> str:
    """In how many questions of a task nothing is left of what is asked about."""
    some = [one.patches == 0 for one in left_of(method, "compact") if one.task == task]
    return f"{percent(sum(some) / len(some))}%"


@table("budgets/kept")
def budgets_kept() -> str:
    """Where the kept patches lie."""
    lines = [["every patch", f"{percent(on_things(None))}%", "", ""]]
    lines += [
        [named(method), f"{percent(on_things(method))}%", nothing_left(method, "shape"), nothing_left(method, "name")]
        for method in METHODS
    ]
    return markdown(
        ["", "on things", "nothing is left of the shape asked about", "of the thing named by its place"], lines
    )


@table("budgets/left")
def budgets_left() -> str:
    """Right answers by how many patches are left."""
    lines = []
    for place in POSITIONS:
        for method in METHODS:
            cells = []
            for task in ("shape", "color"):
                for low, high in ((0, 0), (1, 2), (3, GRID * GRID)):
                    some = [
                        one.right for one in left_of(method, place) if one.task == task and low <= one.patches <= high
                    ]
                    cells.append(f"{percent(sum(some) / len(some))} ({len(some)})" if some else "")
            lines.append([named(method), place, *cells])
    heads = [f"`{task}`: {left}" if left == LEFT[0] else left for task in ("shape", "color") for left in LEFT]
    return markdown(["", "positions", *heads], lines)
