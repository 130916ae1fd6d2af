"""The tables of what can be set for ``flowcut train``, from the classes that read it; see :mod:`measured_tables`."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, get_type_hints

from measured import markdown
from measured_tables import table

from flowcut.methods.settings import described_attributes
from flowcut.tasks.paired import Difference, paired_difference
from flowcut.training.config import DataConfig, OptimizeConfig, PartsConfig, ReportConfig, TrainConfig, TuneConfig

CUT = Path(__file__).parents[1] / "recipes" / "mini" / "log" / "cut.json"
"""What `python -m recipes.mini cut` has found."""


def keys_of(form: type[Any], where: str = "") -> str:
    """Key, default and meaning of every field."""
    hints, told = get_type_hints(form), described_attributes(str(form.__doc__))
    lines = []
    for one in fields(form):
        if not is_dataclass(hints[one.name]):
            default = "" if one.default is MISSING or one.default in ("", ()) else f"`{written(one.default)}`"
            lines.append([f"`{where}{one.name}`", default, told[one.name]])
    return markdown(["key", "default", "meaning"], lines)


def written(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


@table("train/top")
def train_top() -> str:
    """The keys at the top."""
    return keys_of(TrainConfig)


@table("train/data")
def train_data() -> str:
    """The keys below ``data``."""
    return keys_of(DataConfig, "data.")


@table("train/tune")
def train_tune() -> str:
    """The keys below ``tune``."""
    return keys_of(TuneConfig, "tune.")


@table("train/optimize")
def train_optimize() -> str:
    """The keys below ``optimize``."""
    return keys_of(OptimizeConfig, "optimize.")


@table("train/report")
def train_report() -> str:
    """The keys below ``report``."""
    return keys_of(ReportConfig, "report.")


@table("train/parts")
def train_parts() -> str:
    """The keys below ``parts``."""
    return keys_of(PartsConfig, "parts.")


@cache
def trials() -> list[dict[str, Any]]:
    """The trials of training with cutting, one for each seed."""
    told: dict[str, Any] = json.loads(CUT.read_text(encoding="utf-8"))
    return list(told.values())


def hits_of(one: dict[str, Any]) -> dict[str, list[int]]:
    """Which questions were answered rightly, by task."""
    return {task: [int(hit) for hit in hits] for task, hits in one["right"].items()}


def points(difference: Difference) -> str:
    """A difference in points with its interval."""
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


@table("train/cut")
def train_cut() -> str:
    """Accuracy with each method's tokens, before and after."""
    answers = [(one, told["scenes"]) for told in sorted(trials(), key=most_scenes) for one in told["answers"]]
    before = {(one["tokens"], scenes): one for one, scenes in answers if one["dialogues"] == 0}
    lines = []
    for (tokens, scenes), start in before.items():
        lines.append([f"`{tokens}`", "before", right_of(start), "", average_of(start), ""])
        for one, asked in answers:
            if (one["tokens"], asked) == (tokens, scenes) and one["dialogues"]:
                hits, other = hits_of(one), hits_of(start)
                pooled, before_it = ({"all": [hit for task in hits for hit in some[task]]} for some in (hits, other))
                lines.append(
                    [
                        f"`{tokens}`",
                        f"{one['dialogues']} dialogues with `{one['weights']}`",
                        right_of(one),
                        points(paired_difference(pooled, before_it)),
                        average_of(one),
                        points(paired_difference(hits, other)),
                    ]
                )
    head = ["tokens", "weights", "right", "minus before", "average of six tasks", "minus before"]
    return markdown(head, lines)


def most_scenes(told: dict[str, Any]) -> int:
    """Sorts trials, those that asked most first."""
    return -int(told["scenes"])


def right_of(one: dict[str, Any]) -> str:
    """How many questions were answered rightly."""
    hits = "".join(one["right"].values())
    return f"{hits.count('1')} of {len(hits)}"


def average_of(one: dict[str, Any]) -> str:
    """Accuracy in %, every task weighing the same."""
    return f"{100 * mean(mean(hits) for hits in hits_of(one).values()):.1f}"


@table("train/cut-seconds")
def train_cut_seconds() -> str:
    """CPU seconds of an update."""
    seconds = next(told["seconds"] for told in trials() if "uncut" in told["seconds"])
    whole = {name: [sum(step) for step in steps] for name, steps in seconds.items()}
    lines = []
    for name, steps in seconds.items():
        ratio = median(one / other for one, other in zip(whole["uncut"], whole[name], strict=True))
        tower, language = (median(step[part] for step in steps) for part in (0, 1))
        lines.append([f"`{name}`", f"{tower:.2f}", f"{language:.2f}", f"{median(whole[name]):.2f}", f"{ratio:.1f}"])
    head = ["tokens", "tower and projector", "language model, with its update", "together", "times as fast"]
    return markdown(head, lines)
