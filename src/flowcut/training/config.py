"""What can be set for a training run.

Every key of its YAML file (see :mod:`.reading`) is a field of one of the classes here, and its meaning stands in their
docstrings, from which the page's tables are made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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
        squares: for LLaVA-1.5, how pictures become squares: ``pad`` fills them up with grey, ``cut`` takes their
            middle; by default as the checkpoint's processor does.
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
        tasks: a built-in split (``test-v1``) whose tasks are asked at every evaluation, or None. The method's budget
            must then be a ``target_num``.
        per_task: questions of each of its tasks.
        tensorboard: whether logs are written for TensorBoard too, below ``runs`` in the output folder.
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
