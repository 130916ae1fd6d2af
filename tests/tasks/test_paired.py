"""Paired differences: against hand-made numbers, resampling, and what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowcut.tasks.paired import hits_of, paired_difference, questions_of
from flowcut.tasks.rows import RowFile

STORED = RowFile(Path(__file__).parents[2] / "docs" / "measured" / "photo").read()[0]


def test_a_difference_by_hand() -> None:
    first = {"exist": [True, True, False, True], "name": [True, False]}
    second = {"exist": [True, False, True, False], "name": [True, True]}
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((0.25 - 0.5) / 2)
    spread = (((0 - 0.25) ** 2 + (1 - 0.25) ** 2 + (-1 - 0.25) ** 2 + (1 - 0.25) ** 2) / 3 / 4 + 0.5 / 2) ** 0.5 / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * spread, abs=1e-6)
    assert (found.high + found.low) / 2 == pytest.approx(found.mean)
    assert paired_difference(first, second, ["name"]).mean == -0.5
    assert paired_difference(second, first).mean == pytest.approx(-found.mean)


def test_the_interval_is_what_resampled_questions_give() -> None:
    random = np.random.default_rng(0)
    first = {task: random.random(300) < share for task, share in (("exist", 0.8), ("name", 0.5))}
    second = {task: hits ^ (random.random(300) < 0.2) for task, hits in first.items()}
    found = paired_difference(first, second)  # type: ignore[arg-type]
    means = []
    for _ in range(4000):
        drawn = [random.integers(0, 300, 300) for _ in first]
        parts = [first[t][d].mean() - second[t][d].mean() for t, d in zip(first, drawn, strict=True)]
        means.append(np.mean(parts))
    low, high = np.quantile(means, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_equal_answers_differ_by_nothing() -> None:
    found = paired_difference({"exist": [True, False]}, {"exist": [True, False]})
    assert (found.mean, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("second", "tasks"),
    [({"exist": [True]}, None), ({"exist": [True, False, True]}, None), ({"exist": [True, True]}, [])],
    ids=["one question", "another number", "no task"],
)
def test_what_cannot_be_paired_is_refused(second: dict[str, list[bool]], tasks: list[str] | None) -> None:
    first = {"exist": [True] if len(second["exist"]) == 1 else [True, False]}
    with pytest.raises(ValueError, match=r"paired|at least one task"):
        paired_difference(first, second, tasks)


def test_questions_are_those_that_were_asked() -> None:
    assert len(questions_of(STORED.identity)) == len(STORED.row.answers) == 479
    hits = hits_of(STORED.identity, STORED.row)
    assert {task: sum(some) / len(some) for task, some in hits.items()} == {
        task: score.accuracy for task, score in STORED.row.scores.items()
    }
    with pytest.raises(ValueError, match="480 questions of photo-v2"):
        questions_of({**STORED.identity, "questions": 480})
    with pytest.raises(ValueError, match="478 answers to 479 questions"):
        hits_of(STORED.identity, replace(STORED.row, answers=STORED.row.answers[:-1]))
