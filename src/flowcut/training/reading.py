"""A run's settings from a YAML file; a key that is not known, and a value that is not allowed, are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..methods import METHODS, Method
from ..methods.naming import read_expression
from .config import UNCUT, TrainConfig, TuneConfig

Part = TypeVar("Part")


def read_config(path: str | Path) -> TrainConfig:
    """Read a run's settings from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, a key is unknown, or a value is not allowed; the message names what is.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"There is no configuration {str(path)!r}.")
    try:
        given = yaml.safe_load(place.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds no settings. docs/train.md shows what a configuration looks like.")
    try:
        return checked(build(TrainConfig, given, ""))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build(form: type[Part], given: Mapping[str, Any], where: str) -> Part:
    """A class of settings from plain values.

    Args:
        form: the class.
        given: keys and values.
        where: the keys above, with a dot behind them, for messages.

    Raises:
        ValueError: see :func:`read_config`.
    """
    hints = get_type_hints(form)
    known = [one.name for one in fields(form)]  # type: ignore[arg-type]
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise ValueError(
            f"unknown key {where}{unknown[0]!s}; known {'there' if where else 'at the top'}: {', '.join(known)}."
        )
    values = {key: converted(value, hints[key], f"{where}{key}") for key, value in given.items()}
    return form(**values)


def converted(value: Any, hint: Any, name: str) -> Any:
    """A plain value as a field takes it.

    Raises:
        ValueError: it is of another kind.
    """
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (inner,) = (one for one in arguments if one is not NoneType)
        return converted(value, inner, name)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} takes keys of its own, got {value!r}.")
        return build(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        listed = value if isinstance(value, list) else [value]
        return tuple(converted(one, arguments[0], name) for one in listed)
    if get_origin(hint) is Literal:
        if value not in arguments:
            raise ValueError(f"{name} takes {' or '.join(map(str, arguments))}; got {value!r}.")
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 2e-5, without a point, as text
        except ValueError as error:
            raise ValueError(f"{name} takes a number; got {value!r}.") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        told = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ValueError(f"{name} takes {told[hint]}; got {value!r}.")
    return value


def checked(config: TrainConfig) -> TrainConfig:
    """The same, if its values go together.

    Raises:
        ValueError: they do not.
    """
    parts, data, optimize, report = config.parts, config.data, config.optimize, config.report
    assembled = parts.language is not None and parts.tower is not None
    if (config.model is None) != assembled or (parts.language is None) != (parts.tower is None):
        raise ValueError("give either model, or parts.language and parts.tower, from which a new LLaVA is made.")
    if not config.output:
        raise ValueError("output, the folder for the result, is missing.")
    if not data.train:
        raise ValueError("data.train, what to train on, is missing; `toy` is the set that ships with flowcut.")
    if data.held_out is not None and data.held_out_share:
        raise ValueError("give one of data.held_out and data.held_out_share, not both.")
    if config.tune == TuneConfig(language="frozen"):
        raise ValueError("nothing is trained: tune.language and tune.tower are frozen, tune.projector is false.")
    at_least_one = {
        "optimize.batch": optimize.batch,
        "optimize.accumulate": optimize.accumulate,
        "optimize.steps": 1 if optimize.steps is None else optimize.steps,
        "tune.rank": config.tune.rank,
        "data.frames": data.frames,
        "data.max_length": 1 if data.max_length is None else data.max_length,
        "report.log_every": report.log_every,
        "report.save_every": report.save_every,
        "report.keep": report.keep,
        "report.evaluate_every": 1 if report.evaluate_every is None else report.evaluate_every,
        "report.per_task": report.per_task,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    shares = {
        "data.held_out_share": data.held_out_share,
        "optimize.warmup": optimize.warmup,
        "tune.dropout": config.tune.dropout,
    }
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {share}.")
    for name in ("rate", "projector_rate", "tower_rate"):
        rate = getattr(optimize, name)
        if rate is not None and not rate > 0:
            raise ValueError(f"optimize.{name} must be above 0, got {rate}.")
    if optimize.weights == "bfloat16" and not optimize.autocast:
        raise ValueError("optimize.weights: bfloat16 needs optimize.autocast: true; what is trained stays in float32.")
    named_method(config)
    return config


def named_method(config: TrainConfig) -> Method | None:
    """The method that the configuration names; ``None`` for ``uncut`` and where it names none.

    Raises:
        ValueError: it is unknown, or has no budget.
    """
    if config.method in (None, UNCUT):
        return None
    return read_expression(str(config.method), METHODS).build()
