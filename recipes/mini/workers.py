"""Trains in several processes of one thread each, which is faster than one process of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import distributed, multiprocessing, nn

from flowcut.cli.options import progress_bar

T = TypeVar("T")


class Reports(Protocol):
    """Called with how much is done, and a line about it."""

    def __call__(self, done: int, line: str) -> None: ...


class Training(Protocol):
    """What is run, in every process: this one's number among them, and whom to tell about it."""

    def __call__(self, *, worker: int, workers: int, progress: Reports) -> object: ...


def run(training: Training, workers: int, folder: Path, total: int) -> Path:
    """Train, or go on where it was interrupted, with a progress bar.

    Args:
        training: what every process calls; a function at the top of a module, or a `partial` of one.
        workers: number of processes.
        folder: where the weights will lie; the processes meet beside it.
        total: how much there is to be done.

    Returns:
        the folder.
    """
    meeting = folder.with_suffix(".meeting")
    if workers > 1:
        folder.parent.mkdir(parents=True, exist_ok=True)
        meeting.unlink(missing_ok=True)  # left by a run that was interrupted
        multiprocessing.spawn(_work, (workers, training, meeting, total), nprocs=workers)
    else:
        _work(0, 1, training, meeting, total)
    return folder


def _work(worker: int, workers: int, training: Training, meeting: Path, total: int) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        address = f"file://{meeting.resolve()}"
        distributed.init_process_group("gloo", init_method=address, rank=worker, world_size=workers)
    with progress_bar(disable=worker > 0) as bar:
        task = bar.add_task(meeting.stem, total=total)
        training(
            worker=worker,
            workers=workers,
            progress=lambda done, line: bar.update(task, completed=done, description=line),
        )


def average_gradients(weights: Sequence[nn.Parameter], workers: int) -> None:
    """Replace every gradient by its mean over all workers; a weight without one counts as zero."""
    if workers == 1:
        return
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    flat = torch.cat([gradient.float().reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    parts = flat.div_(workers).split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)


def gathered(mine: T, workers: int) -> list[T]:
    """What each of the workers has, in their order."""
    everyone = [mine] * workers
    if workers > 1:
        distributed.all_gather_object(everyone, mine)
    return everyone
