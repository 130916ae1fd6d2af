"""transformers' Trainer with what training with cutting adds: the order of samples, rates by part, what was saved."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..attaching import Handle, attach, handle_of
from ..checkpoints.loading import LoadedModel
from ..methods import Method
from .collating import BAD
from .config import TrainConfig
from .preparing import Prepared
from .processes import check_sharing
from .sampling import LengthSampler

LOG = "log.csv"
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "visual_tokens_saved",
    "seconds_per_step",
    "bad_samples",
    "eval_loss",
    "eval_accuracy",
)
"""What ``log.csv`` holds, and under which names."""

RUN = "training.yaml"
"""A run's settings, in its output folder, and in each checkpoint when it is complete."""


class CutTrainer(Trainer):
    """Trains by a configuration.

    Args:
        config: the run's.
        prepared: the model.
        method: what cuts, if anything does.
        **options: see transformers' ``Trainer``.
    """

    def __init__(self, config: TrainConfig, prepared: Prepared, method: Method | None, **options: Any) -> None:
        self.settings, self.prepared, self.method = config, prepared, method
        self.tally = Tally()
        super().__init__(model=prepared.model, **options)
        check_sharing(self.accelerator, tasks=config.report.tasks is not None)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        update = self.args.train_batch_size * self.args.gradient_accumulation_steps * max(1, self.args.world_size)
        self.order = LengthSampler(data.lengths, update, self.settings.seed, grouped=self.settings.optimize.grouped)
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the trained weights, in groups by their part's rate and by whether they decay."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            optimize = self.settings.optimize
            rates = {"projector": optimize.projector_rate, "tower": optimize.tower_rate}
            decaying = self.get_decay_parameter_names(trained)
            groups: dict[tuple[float, float], list[Any]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    rate = rates.get(self.prepared.group_of(parameter)) or optimize.rate
                    decay = optimize.decay if name in decaying else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            form, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            listed = [
                {"params": weights, "lr": rate, "weight_decay": decay} for (rate, decay), weights in groups.items()
            ]
            self.optimizer = form(listed, **settings)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.train_dataset.bad.named.update(inputs.pop(BAD, {}))  # type: ignore[union-attr]
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass, counted."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        handle = None if self.method is None else handle_of(self.prepared.model)
        self.tally.add(inputs, handle.trace if isinstance(handle, Handle) else None)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was counted since the last row of the training log."""
        if "loss" in logs:
            logs = {**logs, **self.tally.read(self.state.global_step)}
            bad = gather_object(list(self.train_dataset.bad.named))  # type: ignore[union-attr]
            logs["bad_samples"] = len(set(bad))
        super().log(logs, start_time)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The loss on what was held out, and how many questions of the built-in tasks are answered rightly."""
        metrics: dict[str, float] = {}
        if self.eval_dataset is not None:
            metrics = super().evaluate(*arguments, **options)
        if self.settings.report.tasks is not None:  # by every process: its weights may lie in all of them
            asked = self._ask(self.settings.report.tasks)
            self.log(asked)
            metrics |= asked
        self.control.should_evaluate = False  # or the end of an epoch asks a second time
        self.tally.start()
        return metrics

    def _ask(self, split_name: str) -> dict[str, float]:
        """Accuracy on a built-in split with the method of the run, each task weighing the same."""
        from ..methods.naming import describe
        from ..tasks import load_split
        from ..tasks.asking import UNCUT, Memory, RowPlan
        from ..tasks.evaluation import choose_questions, evaluate_row

        model: Any = self.prepared.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        training = model.training
        model.eval()
        split = load_split(split_name)
        tasks = sorted({question.task for scene in split.scenes for question in scene.questions} - {"read"})
        asked = choose_questions(split, tasks, per_task=self.settings.report.per_task)
        method = self.method
        plan = RowPlan(UNCUT) if method is None else RowPlan(describe(method), method.target_num)
        loaded = LoadedModel(inner, self.processing_class, inner.device, inner.dtype)
        with Memory(loaded) as memory:
            row = evaluate_row(loaded, plan, asked, batch_size=16, memory=memory)
        if method is not None:
            attach(model, method)
        model.train(training)
        shares = {f"eval_{task}": score.accuracy for task, score in row.scores.items()}
        return {"eval_accuracy": row.average, **shares}


class Tally:
    """What passes cost since it was last read."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._began = time.perf_counter()
        self._step: int | None = None
        self._tokens: Tensor | int = 0
        self._visual: Tensor | int = 0
        self._removed: Tensor | int = 0

    def add(self, inputs: dict[str, Any], trace: Any) -> None:
        """Count a pass.

        Args:
            inputs: of the pass, uncut.
            trace: of what was cut; ``None`` for nothing.
        """
        mask = inputs["attention_mask"]
        if trace is None or trace.sequence is None:
            self._tokens = self._tokens + mask.sum()
            return
        first = trace.sequence.stretches[0]
        self._tokens = self._tokens + first.new_mask.sum()
        self._visual = self._visual + sum(trace.sequence.visual_tokens)
        self._removed = self._removed + first.removed.sum()

    def read(self, step: int) -> dict[str, float]:
        """Tokens per second that the language model read, the share of visual tokens that it was spared, seconds.

        Those of all processes, which must ask together.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        counts = gather_object([[float(one) for one in (self._tokens, self._visual, self._removed)]])
        tokens, visual, removed = (sum(one) for one in zip(*counts, strict=True))
        told = {"tokens_per_second": round(tokens / seconds, 1)}
        if visual + removed:
            told["visual_tokens_saved"] = round(removed / (visual + removed), 4)
        if self._step is not None and step > self._step:
            told["seconds_per_step"] = round(seconds / (step - self._step), 3)
        self.start()
        self._step = step
        return told


class RunCallback(TrainerCallback):
    """Keeps the order of samples in step with the epoch, writes ``log.csv``, and marks complete checkpoints."""

    def __init__(self, config: TrainConfig, *, evaluates: bool) -> None:
        self.config, self.evaluates = config, evaluates
        self.trainer: CutTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count."""
        assert self.trainer is not None
        self.trainer.tally.start()
        self.trainer.tally._step = state.global_step

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the sampler the epoch; where a run goes on in several processes, accelerate does not reach it."""
        assert self.trainer is not None
        self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for an evaluation; the Trainer's own schedule wants held-out samples, built-in tasks do without."""
        every = self.config.report.evaluate_every
        if every is not None and self.evaluates and state.global_step % every == 0:
            control.should_evaluate = True
        return control

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the log anew from all that was logged, so that a run that goes on continues it."""
        if not state.is_world_process_zero:
            return
        rows: dict[int, dict[str, Any]] = {}
        for entry in state.log_history:
            rows.setdefault(int(entry["step"]), {}).update({key: entry[key] for key in COLUMNS if key in entry})
        path = Path(str(args.output_dir)) / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows.values())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete: everything else was written before, by all processes."""
        assert self.trainer is not None
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            write_run(self.config, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def write_run(config: TrainConfig, folder: Path) -> None:
    """Write a run's settings into a folder; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RUN}.partial"
    partial.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8")
    partial.replace(folder / RUN)
