"""One training run from its configuration to a checkpoint that remembers its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainerState, TrainingArguments, set_seed

from ..checkpoints.memory import read_memory, write_memory
from ..checkpoints.remembering import FlowCutCallback
from ..errors import FlowCutError
from ..methods import Method
from ..methods.naming import describe
from .collating import Collator, blank_row
from .config import UNCUT, TrainConfig
from .conversation import Conversations
from .dataset import SampleSet
from .preparing import prepare, template_of
from .processes import agree, placement, silent
from .reading import named_method
from .resuming import STATE, copy_weights, finished, last_checkpoint, remove_checkpoints, step_of
from .samples import BadSamples, Sample, read_samples
from .trainer import CutTrainer, RunCallback, write_run

Tell = Callable[[str], None]
"""Called with a line about what is done."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: the folder with the trained weights.
        method: as text with its budget, or ``uncut``.
        steps: updates in all.
        resumed_from: the update after which it went on, or ``None``.
        samples: good samples trained on.
        bad: bad ones, by kind.
        trained: weights trained, and all there are.
        loss: mean training loss of the updates made now; ``None`` where the run was finished before.
        evaluation: of the last one.
    """

    output: str
    method: str
    steps: int
    resumed_from: int | None
    samples: int
    bad: str
    trained: tuple[int, int]
    loss: float | None
    evaluation: dict[str, float]


def train(
    config: TrainConfig, *, fresh: bool = False, cpu: bool = False, tell: Tell = lambda line: None
) -> TrainResult:
    """Train, or go on from the last complete checkpoint in the output folder.

    Args:
        config: see :func:`~flowcut.training.config.read_config`.
        fresh: begin anew, whatever the output folder holds.
        cpu: do not use an accelerator.
        tell: see :data:`Tell`.

    Raises:
        FlowCutError: a library is missing, or the model is not supported.
        ValueError: the data, or the settings of a run that is gone on with, do not fit.
        FileNotFoundError: a file is missing.
    """
    cpu, backend = placement(told=cpu)
    state = PartialState(cpu=cpu, backend=backend)
    if not state.is_main_process:
        tell = silent
    checkpoint = None if fresh else last_checkpoint(config)
    agree(checkpoint)
    if fresh and state.is_main_process:
        remove_checkpoints(config)
    set_seed(config.seed)
    method = method_of(config)
    if config.report.tasks is not None and method is not None and method.target_num is None:
        raise ValueError(f"report.tasks asks with a target_num, but the method is {describe(method, budget=True)}.")
    config = replace(config, method=UNCUT if method is None else describe(method, budget=True))
    tell(f"Loading {config.model or config.parts.language} ...")
    prepared = prepare(config)
    weights = [(one.numel(), one.requires_grad) for one in prepared.model.parameters()]
    writer = Conversations(prepared.processor, template_of(config))
    bad = BadSamples(config.data.bad == "stop")
    tell("Reading the data ...")
    train_set, held_out = sample_sets(config, writer, method, bad)
    if len(bad):
        tell(f"Bad samples are left out: {bad}.")
    # Several processes wait for each other's towers; a loss about text alone has no gradient where the language model
    # is frozen; and weights without a gradient are not moved by an optimizer that moves those with a zero one, so that
    # what trains projector or tower would depend on the number of processes. See Collator.
    tune = config.tune
    always_picture = state.num_processes > 1 or tune.language == "frozen" or tune.projector or tune.tower != "frozen"
    evaluates = held_out is not None or config.report.tasks is not None
    callback = RunCallback(config, evaluates=evaluates)
    cutting = [] if method is None else [FlowCutCallback(method, base=prepared.base)]
    trainer = CutTrainer(
        config,
        prepared,
        method,
        args=arguments(config, cpu=cpu, backend=backend),
        data_collator=Collator(prepared.processor, blank_row(writer) if always_picture else None),
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=prepared.processor,
        callbacks=[*cutting, callback],  # RunCallback last: it marks checkpoints as complete
    )
    callback.trainer = trainer
    if state.is_main_process:
        write_run(config, Path(config.output))
    loss = None
    done = checkpoint if checkpoint is not None and finished(checkpoint) else None
    shares = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if done is not None:
        tell(f"The run was finished at {done}.")
        trainer.state = TrainerState.load_from_json(str(done / STATE))
    if done is not None and shares:
        tell("It is not evaluated again: FSDP and DeepSpeed take weights only together with an optimizer.")
        evaluates = False
        if state.is_main_process:
            copy_weights(done, config)
    elif done is not None:
        trainer._load_from_checkpoint(str(done))
    else:
        if checkpoint is not None:
            tell(f"Going on from {checkpoint}.")
        outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        loss = float(outcome.training_loss)
    evaluation = trainer.evaluate() if evaluates else {}
    if done is None or not shares:
        trainer.save_model()
    if method is not None and state.is_main_process:
        write_memory(method, config.output, base=prepared.base)
    return TrainResult(
        output=config.output,
        method=config.method or UNCUT,
        steps=trainer.state.global_step,
        resumed_from=None if checkpoint is None else step_of(checkpoint),
        samples=len(train_set),
        bad=str(bad),
        trained=(sum(count for count, trained in weights if trained), sum(count for count, _ in weights)),
        loss=loss,
        evaluation={key: value for key, value in evaluation.items() if isinstance(value, float)},
    )


def method_of(config: TrainConfig) -> Method | None:
    """The method of a run: what the configuration names, else what the checkpoint was trained with.

    Raises:
        ValueError: neither says one.
    """
    if config.method is not None:
        return named_method(config)
    memory = None if config.model is None else read_memory(config.model)
    if memory is None:
        raise ValueError(
            "method is missing: how to cut and how many tokens to keep, such as flowcut(target_num=64), or uncut."
        )
    return memory.method


def sample_sets(
    config: TrainConfig, writer: Conversations, method: Method | None, bad: BadSamples
) -> tuple[SampleSet, SampleSet | None]:
    """What is trained on and what is held out.

    Raises:
        ValueError, FileNotFoundError: see :func:`train`.
    """
    data = config.data
    samples = read_samples(data.train, data.pictures, bad)
    held: list[Sample] = []
    if data.held_out is not None:
        held = read_samples([data.held_out], data.pictures, bad)
    elif data.held_out_share:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(config.seed)).tolist()
        count = max(1, round(data.held_out_share * len(samples)))
        held = [samples[number] for number in sorted(order[:count])]
        samples = [samples[number] for number in sorted(order[count:])]

    def made(chosen: list[Sample]) -> SampleSet:
        return SampleSet(chosen, writer, method, bad, max_length=data.max_length, frames=data.frames)

    return made(samples), made(held) if held else None


def arguments(config: TrainConfig, *, cpu: bool, backend: str | None) -> TrainingArguments:
    """The same settings as transformers' Trainer takes them."""
    optimize, report = config.optimize, config.report
    # Trained towers and their adapters may leave weights without a gradient in a pass; nothing else does.
    unused = config.tune.tower != "frozen"
    return TrainingArguments(
        output_dir=config.output,
        seed=config.seed,
        max_steps=-1 if optimize.steps is None else optimize.steps,
        num_train_epochs=optimize.epochs,
        per_device_train_batch_size=optimize.batch,
        per_device_eval_batch_size=optimize.batch,
        gradient_accumulation_steps=optimize.accumulate,
        learning_rate=optimize.rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(optimize.schedule, optimize.schedule),
        warmup_steps=optimize.warmup,
        weight_decay=optimize.decay,
        max_grad_norm=optimize.clip,
        bf16=optimize.autocast,
        gradient_checkpointing=optimize.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if optimize.checkpointing else None,
        dataloader_num_workers=optimize.workers,
        ddp_find_unused_parameters=unused,
        remove_unused_columns=False,
        prediction_loss_only=True,
        logging_strategy="steps",
        logging_steps=report.log_every,
        save_strategy="steps",
        save_steps=report.save_every,
        save_total_limit=report.keep,
        report_to=reporters(config),
        use_cpu=cpu,
        ddp_backend=backend,
    )


def reporters(config: TrainConfig) -> list[str]:
    """Where logs go beside ``log.csv``.

    Raises:
        FlowCutError: TensorBoard's writer is not installed.
    """
    if not config.report.tensorboard:
        return []
    if find_spec("tensorboard") is None:
        raise FlowCutError("report.tensorboard needs TensorBoard: pip install tensorboard.")
    return ["tensorboard"]
