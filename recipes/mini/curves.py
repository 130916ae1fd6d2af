"""Draws training logs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flowcut.tasks import TASKS, wilson

MEAN_OVER = 10
"""So many dialogues are taken together in a curve."""


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a stage's log.csv, numbers throughout."""
    with path.open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def draw(logs: list[Path], picture: Path) -> None:
    """Loss and accuracy on scenes not seen before, stage after stage, over the number of dialogues.

    Args:
        logs: log.csv files in the order in which the stages ran.
        picture: PNG file to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    offset = 0.0
    for number, path in enumerate(logs):
        rows = read_log(path)
        xs = [offset + row["dialogues"] for row in rows]
        left.plot(xs, [row["loss"] for row in rows], color="black", marker=".")
        for color, task in enumerate(TASKS):
            label = task if number == 0 else None
            right.plot(xs, [100 * row[task] for row in rows], color=f"C{color}", marker=".", label=label)
        offset = xs[-1]
        if number < len(logs) - 1:
            for axes in (left, right):
                axes.axvline(offset, color="grey", linestyle=":")
    left.set(xlabel="dialogues", ylabel="loss (answers, guided heads)", yscale="log")
    right.set(xlabel="dialogues", ylabel="exact answers in training, %", ylim=(0, 100))
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def draw_cut(found: Path, picture: Path) -> None:
    """What training with cutting wins back (`cut_trial.py`): in training, and on the test split, over the dialogues.

    Args:
        found: the JSON file of the trial; its first seed is drawn.
        picture: PNG file to write.
    """
    told = next(iter(json.loads(found.read_text(encoding="utf-8")).values()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for color, (name, log) in enumerate(told["logs"].items()):
        hits = np.cumsum([[0, 0], *([int(row["right"]), int(row["questions"])] for row in log)], axis=0)
        span = min(MEAN_OVER, len(log))
        asked = hits[span:] - hits[:-span]
        left.plot(range(span, len(log) + 1), 100 * asked[:, 0] / asked[:, 1], color=f"C{color}", label=name)
        points = [one for one in told["answers"] if one["tokens"] == name and one["weights"] in (name, "before")]
        right.errorbar(
            [one["dialogues"] for one in points],
            [100 * share_of(one)[0] for one in points],
            [[100 * abs(share_of(one)[0] - share_of(one)[end]) for one in points] for end in (1, 2)],
            color=f"C{color}",
            marker="o",
            capsize=3,
            linestyle="-",
            label=f"{name}, trained with it",
        )
    left.set(xlabel=f"dialogues (mean of {MEAN_OVER})", ylabel="exact answers in training, %")
    right.set(xlabel="dialogues", ylabel=f"exact answers, {told['split']}, %")
    for axes in (left, right):
        axes.legend(fontsize=8)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def share_of(one: dict[str, Any]) -> tuple[float, float, float]:
    """Share of all questions answered rightly, and the ends of its 95% interval."""
    hits = "".join(one["right"].values())
    return hits.count("1") / len(hits), *wilson(hits.count("1"), len(hits))
