"""Runs a training stage in several processes of one thread each, which is faster than one process of several."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed, multiprocessing

from .train import Stage, train
from .workspace import Workspace


def run_stage(workspace: Workspace, stage: Stage, start_from: Path | None, workers: int) -> Path:
    """Run a stage, or go on where it was interrupted, with a progress bar.

    Args:
        start_from: as for `train`.
        workers: number of processes.

    Returns:
        the folder with the stage's weights.
    """
    if workers > 1:
        _meeting(workspace, stage).unlink(missing_ok=True)  # left by a run that was interrupted
        multiprocessing.spawn(_work, (workers, workspace, stage, start_from), nprocs=workers)
    else:
        _work(0, 1, workspace, stage, start_from)
    return workspace.training / stage.name


def _work(worker: int, workers: int, workspace: Workspace, stage: Stage, start_from: Path | None) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        meeting = f"file://{_meeting(workspace, stage).resolve()}"
        distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=workers)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=worker > 0) as bar:
        task = bar.add_task(stage.name, total=stage.scenes)
        train(
            workspace,
            stage,
            start_from=start_from,
            worker=worker,
            workers=workers,
            progress=lambda done, line: bar.update(task, completed=done, description=line),
        )


def _meeting(workspace: Workspace, stage: Stage) -> Path:
    """The file through which the workers of a stage find each other."""
    return workspace.training / f"{stage.name}.meeting"
