"""The questions of a job shared out to processes, and what each does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from transformers.utils import logging

from ..checkpoints.loading import load_model
from ..errors import FlowCutError
from .asking import Asker, pads_to_square
from .job import Job
from .parts import Identity, Parts
from .prompts import check_mode
from .questions import Question

START = "spawn"
"""How processes begin: with nothing of this one's, as CUDA needs it."""

Report = Callable[[str, Any], None]
"""Called with ``"done"`` and a number of answers, or with ``"trouble"`` and a message."""


@dataclass(frozen=True)
class Share:
    """The part of a job that one process does.

    Attributes:
        run, process: see :class:`~flowcut.llava_files.parts.Parts`.
        places: 1 for every question that is this process'.
        identity: of the job.
    """

    run: int
    process: int
    places: bytes
    identity: Identity


def shares_of(missing: bytearray, processes: int, parts: Parts) -> list[Share]:
    """The questions without an answer, in as many stretches of equal length as there are processes."""
    places = [place for place, wanted in enumerate(missing) if wanted]
    run = parts.next_run()
    shares = []
    for process in range(processes):
        own = places[len(places) * process // processes : len(places) * (process + 1) // processes]
        if own:
            chosen = bytearray(len(missing))
            for place in own:
                chosen[place] = 1
            shares.append(Share(run, process, bytes(chosen), parts.identity))
    return shares


def work(job: Job, share: Share, report: Report, alive: Callable[[], bool] = lambda: True) -> None:
    """Load the model and ask a share's questions, for as long as ``alive`` says so."""
    loaded = load_model(job.model, job.device, job.dtype)
    check_mode(loaded.processor, job.mode)
    square = pads_to_square(job.model, loaded)
    asker = Asker(
        loaded,
        job.method,
        job.images,
        job.mode,
        job.new_tokens,
        share.identity,
        square,
        lambda message: report("trouble", message),
    )
    if not alive():
        return
    with Parts(job.output, share.identity, len(share.places)).part(share.run, share.process) as part:
        for entries in asker.ask(chosen_questions(job, share), job.batch_size):
            part.add(entries)
            report("done", len(entries))
            if not alive():
                return


def chosen_questions(job: Job, share: Share) -> Iterator[Question]:
    """The questions of a share; nothing is read behind the last of them."""
    last = share.places.rfind(1)
    for question in job.questions.read():
        if share.places[question.place]:
            yield question
        if question.place >= last:
            return


def in_processes(job: Job, shares: list[Share], report: Report) -> None:
    """Every share in a process of its own.

    Raises:
        FlowCutError: one of them failed or was ended; the others end their shares first.
    """
    context: Any = multiprocessing.get_context(START)
    running: dict[Connection, Any] = {}
    failed: list[str] = []
    for share in shares:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work_alone, args=(job, share, len(shares), there), daemon=True)
        process.start()
        there.close()
        running[here] = process
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            try:
                kind, what = pipe.recv()
            except (EOFError, OSError):
                process = running.pop(pipe)
                process.join()
                if process.exitcode:
                    failed.append(f"process {process.pid} ended with {process.exitcode}")
                continue
            if kind == "failed":
                failed.append(what)
            else:
                report(kind, what)
    if failed:
        raise FlowCutError(
            f"{len(failed)} of {len(shares)} processes failed: {'; '.join(dict.fromkeys(failed))}. The answers so far "
            "are kept; run the same command again to go on."
        )


def work_alone(job: Job, share: Share, processes: int, pipe: Connection) -> None:
    """What a process of its own does: its share, on its device, told through the pipe."""
    parent = multiprocessing.parent_process()
    try:
        if torch.cuda.is_available() and job.device in (None, "cuda"):
            job = replace(job, device=f"cuda:{share.process % torch.cuda.device_count()}")
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
        library: Any = logging
        library.set_verbosity_error()
        library.disable_progress_bar()
        work(job, share, lambda kind, what: pipe.send((kind, what)), lambda: parent is None or parent.is_alive())
    except (FlowCutError, OSError, ValueError, RuntimeError) as error:
        pipe.send(("failed", " ".join(str(error).split()) or type(error).__name__))
