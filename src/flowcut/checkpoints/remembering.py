"""Saving a model with the method it was trained with, and loading it attached."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..attaching import attach, handle_of
from ..errors import FlowCutError
from ..methods import Method
from .loading import load_model_alone
from .memory import check_memorable, read_memory, write_memory

__all__ = ["FlowCutCallback", "load", "save"]


def save(model: nn.Module, folder: str | Path, *, processor: Any = None) -> None:
    """Save an attached model so that the checkpoint remembers its method.

    Writes what ``save_pretrained`` writes (of a PEFT model its adapters) and ``flowcut.json``. The checkpoint loads
    as any other; :func:`load` and flowcut's commands attach the method again.

    Args:
        model: attached; it may be wrapped (DDP, PEFT).
        folder: where to.
        processor: saved beside it, if given; the commands need one.

    Raises:
        FlowCutError: nothing is attached, or the method cannot be found again by its name.
    """
    method = method_of(model)
    check_memorable(method)
    inner: Any = model
    while not hasattr(inner, "save_pretrained") and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    inner.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    write_memory(method, folder)


def load(
    path_or_id: str | Path,
    *,
    target_num: int | None = None,
    retain_ratio: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> PreTrainedModel:
    """Load a checkpoint with the method it remembers attached.

    Args:
        path_or_id: a folder or hub id with ``flowcut.json``, or one of the checkpoints in LLaVA's format that FlowCut's
            authors published. Adapters are merged into the model they belong to.
        target_num, retain_ratio: another budget than it was trained with, with a ``UserWarning``.
        device, dtype: see :func:`~flowcut.checkpoints.loading.load_model`.

    Returns:
        The model in evaluation mode, attached.

    Raises:
        FlowCutError: the checkpoint says nothing about a method.
    """
    memory = read_memory(path_or_id)
    if memory is None:
        raise FlowCutError(
            f"{path_or_id} does not say with which method it was trained: it has no flowcut.json. Load it with "
            "transformers and attach one, such as flowcut.attach(model, flowcut.FlowCut(target_num=64))."
        )
    method = memory.method
    if target_num is not None or retain_ratio is not None:
        method = replace(method, target_num=target_num, retain_ratio=retain_ratio)
        if told := memory.difference(method):
            warnings.warn(told, stacklevel=2)
    model = load_model_alone(str(path_or_id), device, dtype)
    attach(model, method)
    return model


def method_of(model: nn.Module) -> Method:
    """The method attached to a model.

    Raises:
        FlowCutError: there is none.
    """
    handle = handle_of(model)
    if handle is None:
        raise FlowCutError(
            f"Nothing is attached to this {type(model).__name__}, so there is nothing to remember. Attach a method "
            "first, or save with model.save_pretrained."
        )
    return handle.method


class FlowCutCallback(TrainerCallback):
    """Lets transformers' ``Trainer``, and TRL's trainers, train with a method, and their checkpoints remember it.

    The method is attached when the trainer is made, if it was not before; each checkpoint gets its ``flowcut.json``,
    and the output folder when training ends.
    """

    def __init__(self, method: Method, *, base: str | None = None) -> None:
        """Check the method.

        Args:
            method: what to train with.
            base: for adapters, the model they belong to as flowcut's commands take it, where that differs from what
                PEFT writes (``flowcut-mini``).

        Raises:
            FlowCutError: the method cannot be found again by its name.
        """
        check_memorable(method)
        self.method = method
        self.base = base

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Attach, unless the same method is attached already."""
        self._attach(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach again what an evaluation in between may have taken off."""
        self._attach(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the memory of a checkpoint."""
        if state.is_world_process_zero:
            write_memory(self.method, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", base=self.base)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the memory of what ``trainer.save_model()`` will put into the output folder."""
        if state.is_world_process_zero:
            write_memory(self.method, str(args.output_dir), base=self.base)

    def _attach(self, model: nn.Module) -> None:
        handle = handle_of(model)
        if handle is None or handle.method != self.method:
            attach(model, self.method)
