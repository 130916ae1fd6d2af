"""ScienceQA (Lu et al. 2022) as LLaVA's evaluation computes it: the letter of an option, and how it is found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .judging import Records, Score, interval_of

OPTIONS = ("A", "B", "C", "D", "E")
SAID = re.compile(r"The answer is ([A-Z]).")
IMAGE = "<image>"


def letter_in(text: str) -> str | None:
    """The option that an answer names: the letter alone, ``B. ...``, or one ``The answer is B.``; else ``None``."""
    if text in OPTIONS:
        return text
    if text[:1] in OPTIONS and text[1:3] == ". ":
        return text[0]
    found = SAID.findall(text)
    return found[0] if len(found) == 1 else None


def score_scienceqa(answers: Records, folder: Path, asked: Sequence[Any] | None = None, split: str = "test") -> Score:
    """Accuracy over a split; a problem without an answer counts as wrong.

    Args:
        answers: with ``question_id``, ``prompt`` and ``text``.
        folder: with ``problems.json`` and ``pid_splits.json``.
        asked: the ids of the problems that were asked; ``None`` for the whole split.
        split: its name.

    Returns:
        The accuracy over all problems; in the details also over those with a picture (``IMG``), which LLaVA reports,
        and over those without.

    Raises:
        ValueError: no annotations.
    """
    try:
        problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
        chosen = json.loads((folder / "pid_splits.json").read_text(encoding="utf-8"))[split]
        wanted = {name: (problems[name]["answer"], len(problems[name]["choices"])) for name in chosen}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold ScienceQA's annotations ({error!r}).") from error
    if asked is not None:
        wanted = {name: wanted[name] for name in wanted if name in set(asked)}
    if not wanted:
        raise ValueError(f"None of the questions is in ScienceQA's split {split!r}.")
    by_id = {answer["question_id"]: answer for answer in answers}
    right, pictured = [], []
    for name, (answer, choices) in wanted.items():
        given = by_id.get(name, {"text": "", "prompt": ""})
        letter = letter_in(given["text"])
        right.append(letter is not None and letter in OPTIONS[:choices] and OPTIONS.index(letter) == answer)
        pictured.append(IMAGE in given["prompt"])
    hits, seen = np.array(right), np.array(pictured)
    between = interval_of(len(hits), lambda drawn: 100 * float(hits[drawn].mean()))
    details = {
        name: {"accuracy": 100 * float(hits[which].mean()), "questions": int(which.sum())}
        for name, which in (("IMG", seen), ("text", ~seen))
        if which.any()
    }
    return Score("ScienceQA", "accuracy", 100 * float(hits.mean()), between, len(hits), details)
