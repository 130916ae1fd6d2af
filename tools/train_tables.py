"""The tables of what can be set for ``flowcut train``, from the classes that read it; see :mod:`measured_tables`."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from statistics import median
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
def trial() -> dict[str, Any]:
    """The first seed of the trial of training with cutting."""
    told: dict[str, Any] = next(iter(json.loads(CUT.read_text(encoding="utf-8")).values()))
    return told


def hits_of(one: dict[str, Any]) -> dict[str, list[int]]:
    """Which questions were answered rightly, by task."""
    return {task: [int(hit) for hit in hits] for task, hits in one["right"].items()}


def points(difference: Difference) -> str:
    """A difference in points with its interval."""
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


@table("train/cut")
def train_cut() -> str:
    """Accuracy with each method's tokens, before and after."""
    told = trial()
    before = {one["tokens"]: one for one in told["answers"] if one["dialogues"] == 0}
    lines = []
    for one in sorted(told["answers"], key=lambda one: list(before).index(one["tokens"])):
        hits, start = hits_of(one), hits_of(before[one["tokens"]])
        right = "".join(one["right"].values())
        average = 100 * sum(sum(some) / len(some) for some in hits.values()) / len(hits)
        weights = "before" if one is before[one["tokens"]] else f"{one['dialogues']} dialogues with `{one['weights']}`"
        moved = "" if weights == "before" else points(paired_difference(hits, start))
        pooled = (
            {"all": [hit for task in hits for hit in hits[task]]},
            {"all": [hit for task in hits for hit in start[task]]},
        )
        all_moved = "" if weights == "before" else points(paired_difference(*pooled))
        count = f"{right.count('1')} of {len(right)}"
        lines.append([f"`{one['tokens']}`", weights, count, all_moved, f"{average:.1f}", moved])
    head = [
        "tokens",
        "trained on",
        "right",
        "minus before, all questions",
        "average of six tasks",
        "minus before, average",
    ]
    return markdown(head, lines)


@table("train/cut-seconds")
def train_cut_seconds() -> str:
    """CPU seconds of an update."""
    lines = []
    uncut = [sum(step) for step in trial()["seconds"]["uncut"]]
    for name, steps in trial()["seconds"].items():
        whole = [sum(step) for step in steps]
        ratio = median(one / other for one, other in zip(uncut, whole, strict=True))
        tower, language = (median(step[part] for step in steps) for part in (0, 1))
        lines.append([f"`{name}`", f"{tower:.2f}", f"{language:.2f}", f"{median(whole):.2f}", f"{ratio:.1f}"])
    return markdown(
        ["tokens", "tower and projector", "language model, with its update", "together", "times as fast"], lines
    )
