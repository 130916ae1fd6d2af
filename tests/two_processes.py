"""Two processes that train together on CPU, forked from the one that runs the tests: nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

SECONDS = 150
"""As long as both may take, unless told otherwise; a collective call that waits for the other for half of it raises."""

RECIPES = Path(__file__).parents[1] / "recipes" / "train"

can_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_initialized(), reason="forks, which CUDA does not survive"
)


def run_both(work: Callable[[int], dict[str, Any]], folder: Path, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """What ``work(rank)`` returned in each of the two processes, which share a gloo group.

    Args:
        work: what each does.
        folder: where they meet.
        seconds: as long as both may take.

    Raises:
        AssertionError: one of them raised, or was not done in time; with what it said.
    """
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=_one, args=(rank, work, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("error-*.txt")))
    assert not hanging and not said, f"processes {hanging} hang\n{said}"
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(2)]


def _one(rank: int, work: Callable[[int], dict[str, Any]], folder: Path) -> None:
    try:
        torch.set_num_threads(1)
        # What torchrun tells a process, for accelerate, which must forget what it found out in the one that forked.
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
        AcceleratorState._reset_state(reset_partial_state=True)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=SECONDS // 2),
        )
        torch.save(work(rank), folder / f"result-{rank}.pt")
        if dist.is_initialized():  # a command that was run leaves it by itself
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)


def know_fsdp() -> None:
    """Let accelerate take FSDP's environment for what it is on CPU too, in this process from now on.

    It asks for an accelerator's backend first, and would train a whole copy in each process. All that follows is its
    own, and gloo does what FSDP2 needs.
    """
    made = AcceleratorState.__init__

    def init(self: Any, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        made(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def environment_of(name: str) -> dict[str, str]:
    """What ``accelerate launch`` puts into the environment of every process for one of our recipes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(RECIPES / f"{name}.yaml"), "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
