"""Schedules that are known before a picture is seen: whole numbers, or a calibration from a file.

A calibration's file is JSON: what :class:`~flowcut.algorithm.calibration.Calibration` holds, with the model's name and
the number of pictures. Those in the folder ``schedules`` ship with flowcut; their model is known by its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..algorithm.calibration import Calibration, cutting_layers, fixed_counts
from .views import TowerPass

SHIPPED = Path(__file__).parent / "schedules"
NAMED = ("adaptive", "calibrated")


@dataclass(frozen=True)
class FixedSchedule:
    """How many patches of every image each cut takes.

    Attributes:
        layers: after which it cuts.
        counts: for each of them, one number for every image.
    """

    layers: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]

    def cut(self, layer: int) -> tuple[int, ...]:
        """Patches that each image loses after ``layer``."""
        return self.counts[self.layers.index(layer)]


def check_schedule(schedule: object) -> None:
    """Refuse what is no schedule.

    Raises:
        ValueError: says what is allowed.
    """
    if isinstance(schedule, tuple):
        if schedule and all(
            isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in schedule
        ):
            return
    elif isinstance(schedule, str) and schedule in NAMED:
        return
    elif isinstance(schedule, str) and schedule.endswith(".json"):
        read_calibration(schedule)
        return
    raise ValueError(
        'schedule must be "adaptive", "calibrated", the path of a .json file that flowcut calibrate wrote, or whole '
        f"numbers such as (90, 60, 40), the patches that each cut takes; got {schedule!r}."
    )


def read_calibration(path: str) -> Calibration:
    """A calibration from a file of :func:`write_calibration`, read again when the file has changed.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    file = Path(path).resolve()
    return parse_calibration(path, file, file.stat().st_mtime_ns if file.is_file() else 0)


@cache
def parse_calibration(path: str, file: Path, changed: int) -> Calibration:
    """What a file holds.

    Args:
        path: as the user gave it, for the message.
        file: the same, absolute.
        changed: when.

    Raises:
        ValueError: see :func:`read_calibration`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Calibration(
            feature_layer=content["feature_layer"],
            every=content["cut_every"],
            shares=tuple(one["share"] for one in content["budgets"]),
            ratios=tuple(tuple(one["ratios"]) for one in content["budgets"]),
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no schedule ({type(error).__name__}: {error}). Write one with flowcut calibrate."
        ) from error


def write_calibration(path: Path, calibration: Calibration, model: str, pictures: int) -> None:
    """Write a calibration, with where it comes from."""
    budgets = [
        {"share": share, "ratios": [round(ratio, 6) for ratio in ratios]}
        for share, ratios in zip(calibration.shares, calibration.ratios, strict=True)
    ]
    content: dict[str, Any] = {
        "model": model,
        "pictures": pictures,
        "feature_layer": calibration.feature_layer,
        "cut_every": calibration.every,
        "budgets": budgets,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def shipped_for(model: str) -> Calibration:
    """The calibration that ships for a model, by its name or the folder that it was loaded from.

    Raises:
        ValueError: there is none.
    """
    for file in sorted(SHIPPED.glob("*.json")):
        if Path(model).name.startswith(file.stem):
            return read_calibration(str(file))
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.json")))
    raise ValueError(
        f"schedule='calibrated': no calibration ships for {model or 'a model without a name'} (there is one for: "
        f"{known}). Write one with flowcut calibrate and give its path: schedule='FILE.json'."
    )


def fixed_schedule(schedule: str | tuple[int, ...], tower: TowerPass, every: int | None) -> FixedSchedule | None:
    """The schedule of one pass, or ``None`` where it is adaptive.

    Args:
        schedule: see :class:`~flowcut.methods.flowcut.FlowCut`.
        tower: the pass.
        every: layers between two cuts.

    Raises:
        ValueError: it does not fit the tower or the budget.
    """
    if schedule == "adaptive":
        return None
    layers = tuple(cutting_layers(tower.feature_layer, every))
    per_image: list[tuple[int, ...]] = []
    for target in tower.targets:
        if target >= tower.patches:
            per_image.append((0,) * len(layers))
        elif isinstance(schedule, tuple):
            per_image.append(checked(schedule, layers, tower.patches, target))
        else:
            place = (tower.patches, target, tower.feature_layer, every)
            per_image.append(calibrated_counts(schedule, tower.model, *place))
    return FixedSchedule(layers, tuple(zip(*per_image, strict=True)))


def checked(counts: tuple[int, ...], layers: tuple[int, ...], patches: int, target: int) -> tuple[int, ...]:
    """Given counts, if they lead from ``patches`` to ``target``.

    Raises:
        ValueError: they do not.
    """
    if len(counts) != len(layers) or sum(counts) != patches - target:
        raise ValueError(
            f"schedule={counts} takes {sum(counts)} patches in {len(counts)} cuts; this tower cuts after "
            f"{len(layers)} layers {list(layers)}, and {patches - target} of an image's {patches} patches have to go."
        )
    return counts


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def calibrated_counts(
    schedule: str, model: str, patches: int, target: int, feature_layer: int, every: int | None
) -> tuple[int, ...]:
    """How many patches of one image every cut takes, by a calibration; a constant of the graph of a compiled tower.

    Args:
        schedule: ``"calibrated"``, or the path of a file.
        model: see :class:`TowerPass`.
        patches: of the image.
        target: how many of them stay.
        feature_layer, every: where the tower cuts.

    Raises:
        ValueError: the calibration is not there, or was made for another tower.
    """
    calibration = shipped_for(model) if schedule == "calibrated" else read_calibration(schedule)
    if (calibration.feature_layer, calibration.every) != (feature_layer, every):
        raise ValueError(
            f"The schedule {schedule!r} was calibrated for feature layer {calibration.feature_layer} and "
            f"cut_every={calibration.every}; here they are {feature_layer} and {every}. Calibrate for this model and "
            "these settings."
        )
    return tuple(fixed_counts(calibration, patches, target))
