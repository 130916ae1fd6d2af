"""The tables of what can be set for ``flowcut train``, from the classes that read it; see :mod:`measured_tables`."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from measured import markdown
from measured_tables import table

from flowcut.methods.settings import described_attributes
from flowcut.training.config import DataConfig, OptimizeConfig, PartsConfig, ReportConfig, TrainConfig, TuneConfig


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
