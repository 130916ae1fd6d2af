"""Draws training logs."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flowcut.tasks import TASKS


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
