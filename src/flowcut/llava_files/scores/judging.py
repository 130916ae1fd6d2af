"""Which metric belongs to which annotations, and what every metric gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = Sequence[dict[str, Any]]
"""Lines of a ``.jsonl`` file."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """What answers reach.

    Attributes:
        benchmark: its name.
        metric: what ``value`` is.
        value: in percent.
        interval: 95% of it, by drawing the questions anew (bootstrap, 1,000 draws).
        questions: how many were judged.
        details: further figures by category; percent, and counts.
    """

    benchmark: str
    metric: str
    value: float
    interval: tuple[float, float]
    questions: int
    details: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self)


def score_answers(
    answers: Path, annotations: Path, questions: Path | None = None, asked: Sequence[Any] | None = None
) -> Score:
    """Judge an answer file by the published metric that its annotations belong to.

    Args:
        answers: a ``.jsonl`` file, ours or one that LLaVA's scripts wrote.
        annotations: a folder with ``coco_pope_*.json`` (POPE), one with ``problems.json`` and ``pid_splits.json``
            (ScienceQA), or ``TextVQA_0.5.1_val.json``.
        questions: POPE's question file in LLaVA's form, which holds the categories.
        asked: the ids of the questions that were asked, where these are not all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the annotations belong to none of the three, or do not fit the answers.
    """
    from .pope import score_pope
    from .scienceqa import score_scienceqa
    from .textvqa import score_textvqa

    records = lines_in(answers)
    if not records:
        raise ValueError(f"{answers} holds no answers.")
    if annotations.is_dir() and (annotations / "problems.json").is_file():
        return score_scienceqa(records, annotations, asked)
    if annotations.is_dir() and any(annotations.glob("coco_pope_*.json")):
        if questions is None:
            raise ValueError("POPE's categories stand in its question file: give it with --questions.")
        return score_pope(records, annotations, lines_in(questions))
    if annotations.is_file() and annotations.suffix == ".json":
        return score_textvqa(records, annotations)
    if not annotations.exists():
        raise FileNotFoundError(f"No annotations found at {str(annotations)!r}.")
    raise ValueError(
        f"{annotations} holds no annotations that are known: a folder with coco_pope_*.json (POPE), one with "
        "problems.json and pid_splits.json (ScienceQA), or TextVQA's .json."
    )


def lines_in(path: Path) -> list[dict[str, Any]]:
    """The objects of a ``.jsonl`` file.

    Raises:
        ValueError: a line is not JSON.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            return [json.loads(line) for line in file if line.strip()]
        except ValueError as error:
            raise ValueError(f"{path} has a line that is not JSON in UTF-8 ({error}).") from error


def interval_of(count: int, statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
    """95% interval of a statistic of ``count`` questions, by drawing them anew.

    Args:
        count: how many there are.
        statistic: of the questions with these numbers; each may occur several times.
    """
    random = np.random.default_rng(0)
    drawn = [statistic(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
