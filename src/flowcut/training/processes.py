"""The processes that train together: whether there are several, what they must agree on, and which one speaks."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env


def placement(*, told: bool) -> tuple[bool, str | None]:
    """Whether accelerate must be told that a run stays on CPU, and the backend it must be told for that.

    It takes several processes on CPU for separate ones, which would all train alone into one folder, unless it is told;
    but told that they stay there it knows no DeepSpeed, for which it is told the backend instead.

    Args:
        told: by the user; ``accelerate launch --cpu`` says so in the environment.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    told = told or parse_flag_from_env("ACCELERATE_USE_CPU")
    if told or alone or torch.accelerator.is_available():
        return told, None
    return (False, "gloo") if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else (True, None)


def silent(line: str) -> None:
    """Tell nothing: of several processes the main one speaks for all."""


def agree(checkpoint: Path | None) -> None:
    """Check that all processes go on from the same checkpoint.

    Raises:
        ValueError: they see different folders.
    """
    seen = gather_object([None if checkpoint is None else checkpoint.name])
    if len(set(seen)) > 1:
        raise ValueError(
            f"The processes see different checkpoints in the output folder ({', '.join(map(str, seen))}). It must "
            "be one folder for all of them, on storage that all machines share."
        )


def check_sharing(accelerator: Accelerator, *, tasks: bool) -> None:
    """Check what accelerate made of FSDP and DeepSpeed's ZeRO-3, which share out the weights over the processes.

    Args:
        accelerator: of the trainer.
        tasks: whether built-in tasks are asked while training.

    Raises:
        ValueError: a whole copy would be trained in each process, weights would not be saved, or they are asked for
            where no process has them.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "accelerate knows FSDP on accelerators alone: on CPU it would silently train a whole copy of the model in "
            "each process. Launch without FSDP (accelerate launch --cpu --num_processes 2)."
        )
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(
            "flowcut train takes FSDP in its second version: fsdp_version: 2, as recipes/train/fsdp2.yaml."
        )
    if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            "With another fsdp_state_dict_type than FULL_STATE_DICT transformers' Trainer saves no weights that can be "
            "loaded; set it as recipes/train/fsdp2.yaml does."
        )
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is None and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError("Told to stay on CPU, accelerate would silently train without DeepSpeed. Leave --cpu out.")
    if tasks and (plugin is not None or (deepspeed is not None and deepspeed.zero_stage == 3)):
        raise ValueError(
            "report.tasks asks the model in every process, but FSDP and ZeRO-3 leave none of them all weights. Use "
            "held-out samples while training, and flowcut eval --model FOLDER afterwards."
        )


def leave() -> bool:
    """Leave the group of processes that trained together; whether this is the one that tells the result."""
    state = PartialState()
    state.destroy_process_group()
    return bool(state.is_main_process)
