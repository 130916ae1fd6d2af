"""Draws training logs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flowcut.tasks import TASKS, wilson


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
    """What training with cutting wins back (`cut_trial.py`): right answers over the dialogues, one line for each run.

    Args:
        found: the JSON file of the trial; all seeds are drawn that were asked as many scenes as the first.
        picture: PNG file to write.
    """
    trials = list(json.loads(found.read_text(encoding="utf-8")).values())
    trials = [told for told in trials if told["scenes"] == trials[0]["scenes"]]
    figure, axes = plt.subplots(figsize=(8, 4))
    colors: dict[str, str] = {}
    labels: set[str] = set()
    for told in trials:
        answers = told["answers"]
        for tokens, weights in dict.fromkeys((one["tokens"], one["weights"]) for one in answers if one["dialogues"]):
            points = [one for one in answers if one["tokens"] == tokens and one["weights"] in (weights, "before")]
            color = colors.setdefault(tokens, f"C{len(colors)}")
            label = f"{tokens}, trained {'with it' if tokens == weights else weights}"
            shares = [share_of(one) for one in points]
            axes.errorbar(
                [one["dialogues"] for one in points],
                [100 * share for share, _, _ in shares],
                [
                    [100 * (share - low) for share, low, _ in shares],
                    [100 * (high - share) for share, _, high in shares],
                ],
                color=color,
                marker="o",
                capsize=3,
                linewidth=1.5,
                elinewidth=0.7,
                linestyle="-" if tokens == weights else ":",
                label=None if label in labels else label,
            )
            labels.add(label)
    axes.set(xlabel="dialogues", ylabel=f"exact answers, {trials[0]['split']}, %")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def share_of(one: dict[str, Any]) -> tuple[float, float, float]:
    """Share of all questions answered rightly, and the ends of its 95% interval."""
    hits = "".join(one["right"].values())
    return hits.count("1") / len(hits), *wilson(hits.count("1"), len(hits))
