"""What can be set for a training run, read from a YAML file; what is not known is refused.

Every key is a field of one of the classes here, and its meaning stands in their docstrings, from which the page's
tables are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..methods import METHODS, Method
from ..methods.naming import read_expression

Part = TypeVar("Part")

UNCUT = "uncut"
"""In the place of a method: train with all tokens."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        train: a file in LLaVA's format (JSON, or JSON lines), a pattern of shards in webdataset's format
            (``shards/*.tar``), or ``toy``, the 200 samples that ship with flowcut; a list takes several.
        pictures: the folder, or the pattern of ``.tar`` shards, in which pictures and videos are looked up by name; by
            default the folder of the file that names them.
        held_out: a file of the same kind that is evaluated on and not trained on.
        held_out_share: the share of the samples that is held out instead, chosen by the seed.
        squares: for LLaVA-1.5, how pictures become squares: ``pad`` fills up with grey, ``cut`` takes the middle;
            by default as the checkpoint's processor does.
        chat_template: a file with a Jinja template, in the place of the processor's own.
        max_length: most tokens of a sample, text and kept visual tokens; longer ones are bad. None: no limit.
        bad: what happens to bad samples (a picture missing or broken, no answer, too long): ``skip`` names and counts
            them, ``stop`` ends the run with the first one's name.
        frames: frames taken of a video.
    """

    train: tuple[str, ...] = ()
    pictures: str | None = None
    held_out: str | None = None
    held_out_share: float = 0.0
    squares: Literal["pad", "cut"] | None = None
    chat_template: str | None = None
    max_length: int | None = 2048
    bad: Literal["skip", "stop"] = "skip"
    frames: int = 8


@dataclass(frozen=True)
class TuneConfig:
    """Which weights are trained.

    Attributes:
        language: the language model: ``frozen``, ``lora`` (adapters) or ``full``.
        projector: whether the projector is trained, all of it.
        tower: the vision tower: ``frozen``, ``lora`` or ``full``. Layers behind the one that the model reads have no
            gradient and stay as they are.
        rank: of the adapters.
        alpha: the adapters' scale is alpha over rank.
        dropout: of the adapters.
        targets: the linear layers that get adapters, by the last part of their names; by default all of them.
    """

    language: Literal["frozen", "lora", "full"] = "lora"
    projector: bool = False
    tower: Literal["frozen", "lora", "full"] = "frozen"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OptimizeConfig:
    """How they are trained.

    Attributes:
        steps: updates; None goes by ``epochs``.
        epochs: passes over the data, where ``steps`` is None.
        batch: samples in a forward pass, on each device.
        accumulate: forward passes of an update.
        rate: highest learning rate.
        projector_rate: that of the projector; None: the same.
        tower_rate: that of the vision tower; None: the same.
        schedule: of the learning rate: ``cosine``, ``linear`` or ``constant``, behind the warm-up.
        warmup: share of the updates in which the rate rises.
        decay: weight decay; biases and norms have none.
        clip: norm to which gradients are clipped; 0 does not.
        weights: dtype of the weights that are not trained: ``float32``, or ``bfloat16`` to save memory, which needs
            ``autocast``. What is trained is kept in float32.
        autocast: whether the passes compute in bfloat16 (``torch.autocast``).
        checkpointing: whether activations are computed again in the backward pass to save memory.
        grouped: whether batches are made of samples of similar length, counted in *kept* tokens.
        workers: processes that prepare samples; 0 prepares them in between.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch: int = 4
    accumulate: int = 1
    rate: float = 2e-4
    projector_rate: float | None = None
    tower_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    decay: float = 0.0
    clip: float = 1.0
    weights: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    checkpointing: bool = False
    grouped: bool = True
    workers: int = 0


@dataclass(frozen=True)
class ReportConfig:
    """What is told and kept on the way.

    Attributes:
        log_every: updates between two rows of ``log.csv``.
        save_every: updates between two checkpoints; the last update makes one.
        keep: how many checkpoints stay.
        evaluate_every: updates between two evaluations; None evaluates only at the end.
        tasks: a built-in split (``test-v1``) whose tasks are asked at every evaluation, or None.
        per_task: questions of each of its tasks.
        tensorboard: whether logs are written for TensorBoard too, below ``logs`` in the output folder.
    """

    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    evaluate_every: int | None = None
    tasks: str | None = None
    per_task: int = 10
    tensorboard: bool = False


@dataclass(frozen=True)
class PartsConfig:
    """Where a new LLaVA is put together from, in the place of a trained ``model``.

    Attributes:
        language: a language model with its tokenizer, folder or hub id.
        tower: a CLIP vision tower with its image processor, folder or hub id.
    """

    language: str | None = None
    tower: str | None = None


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        model: what is trained: ``flowcut-mini``, a folder or a hub id. Adapters in a folder are merged first.
        output: the folder for checkpoints, logs and the result. A run whose checkpoints are there goes on.
        method: the method with its budget, such as ``flowcut(target_num=64)``, or ``uncut``; by default what the
            checkpoint was trained with.
        seed: of the order of samples, new weights and dropout.
        parts, data, tune, optimize, report: see the tables below.
    """

    model: str | None = None
    output: str = ""
    method: str | None = None
    seed: int = 0
    parts: PartsConfig = field(default_factory=PartsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    optimize: OptimizeConfig = field(default_factory=OptimizeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return {key: plain(value) for key, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value


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
