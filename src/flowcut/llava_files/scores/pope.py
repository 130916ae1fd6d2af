"""POPE (Li et al. 2023, arXiv 2305.10355) as LLaVA's evaluation computes it: yes or no, in three categories."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .judging import Records, Score, interval_of, lines_in

PREFIX = "coco_pope_"
NEGATIVE = {"No", "no", "not"}


def says_yes(text: str) -> bool:
    """Whether an answer counts as yes: what has none of the words ``No``, ``no``, ``not`` in its first sentence."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not NEGATIVE & set(words)


def score_pope(answers: Records, annotations: Path, questions: Records) -> Score:
    """Accuracy, precision, recall, F1 (of yes) and the share of yes in every category; the value is their mean F1.

    LLaVA's script pairs a category's answers with the lines of its annotations by their order. So does this, and it
    looks whether both are about the same picture.

    Args:
        answers: in the order of the questions.
        annotations: the folder with ``coco_pope_<category>.json``.
        questions: with ``question_id``, ``category`` and ``image``.

    Raises:
        ValueError: answers and annotations do not pair.
    """
    known = {question["question_id"]: question for question in questions}
    said: dict[str, list[bool]] = defaultdict(list)
    images: dict[str, list[Any]] = defaultdict(list)
    for answer in answers:
        question = known.get(answer["question_id"])
        if question is None:
            raise ValueError(f"The question file has no question {answer['question_id']!r}.")
        said[question["category"]].append(says_yes(answer["text"]))
        images[question["category"]].append(question.get("image"))
    details, pairs = {}, {}
    for category in sorted(said):
        labels = lines_in(annotations / f"{PREFIX}{category}.json")
        count = len(said[category])
        if count > len(labels):
            raise ValueError(f"{category}: {count} answers, but only {len(labels)} annotations.")
        for place, (image, label) in enumerate(zip(images[category], labels, strict=False)):
            if None not in (image, label.get("image")) and image != label["image"]:
                raise ValueError(
                    f"{category}: answer {place} is about {image}, annotation {place} about {label['image']}. Were "
                    "questions left out in front of it?"
                )
        true = np.array([label["label"] != "no" for label in labels[:count]])
        pairs[category] = (np.array(said[category]), true)
        details[category] = figures_of(*pairs[category])
    mean = sum(one["F1"] for one in details.values()) / len(details)
    count = min(len(true) for _, true in pairs.values())

    def drawn(chosen: NDArray[np.int64]) -> float:
        return sum(figures_of(yes[chosen], true[chosen])["F1"] for yes, true in pairs.values()) / len(pairs)

    return Score("POPE", "F1, mean of the categories", mean, interval_of(count, drawn), len(answers), details)


def figures_of(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, float]:
    """The figures of one category in percent; a ratio without anything to divide by is 0."""
    both = float((said & true).sum())
    precision = both / max(1, said.sum())
    recall = both / max(1, true.sum())
    return {
        "accuracy": 100 * float((said == true).mean()),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "F1": 100 * (2 * precision * recall / (precision + recall) if both else 0.0),
        "yes": 100 * float(said.mean()),
        "questions": len(said),
    }
