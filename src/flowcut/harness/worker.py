"""One process of one row: ``python -m flowcut.harness.worker FOLDER``, also under ``torch.distributed.run``.

Runs lmms-eval through its own evaluator and writes the files its command line writes. Beyond that command line, tasks
see the wrapped class's name, so that they choose the prompts they keep for it; a task that is not there, an exception,
and files that could not be written end with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .rows import DONE, HarnessRow, HarnessSettings
from .stopping import StoppedRun, ending_the_run

ROW = "row.json"
"""In a row's folder: what it runs."""

RESULTS, SAMPLES = "_results.json", "_samples_{task}.jsonl"
"""How the names of the harness's files end."""


def read_row(folder: Path) -> HarnessRow:
    """The row of a folder."""
    told = json.loads((folder / ROW).read_text(encoding="utf-8"))
    settings = {**told["settings"], "tasks": tuple(told["settings"]["tasks"])}
    return HarnessRow(**{**told, "settings": HarnessSettings(**settings), "versions": tuple(told["versions"])})


def harness_arguments(row: HarnessRow, folder: Path) -> argparse.Namespace:
    """What lmms-eval's command line would make of this row, since tasks read it."""
    from lmms_eval.__main__ import parse_eval_args

    settings = row.settings
    given = {
        "--model": settings.registered,
        "--model_args": row.model_args(folder),
        "--tasks": ",".join(settings.tasks),
        "--batch_size": settings.batch_size,
        "--device": settings.device,
        "--limit": settings.limit,
        "--include_path": settings.include_path,
        "--output_path": folder / "harness",
        "--verbosity": "INFO",
    }
    words = [str(word) for name, value in given.items() if value is not None for word in (name, value)]
    before = sys.argv
    sys.argv = ["lmms_eval", *words, "--log_samples", *(["--force_simple"] if settings.force_simple else [])]
    try:
        return parse_eval_args()[1]  # type: ignore[no-any-return]
    finally:
        sys.argv = before


def run_row(row: HarnessRow, folder: Path) -> None:
    """Run the harness and, in the first process, write its files.

    Raises:
        ValueError: a task is not there.
        OSError: the harness's files are not whole.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import get_datetime_str

    arguments = harness_arguments(row, folder)
    manager, missing = None, list(row.settings.tasks)
    for with_defaults in (False, True) if row.settings.include_path else (True,):
        if missing:  # indexing the harness's own thousands takes a while
            place, name = row.settings.include_path, row.settings.prompts_of
            manager = TaskManager("INFO", include_path=place, include_defaults=with_defaults, model_name=name)
            missing = [task for task in row.settings.tasks if task not in manager.all_tasks]
    if missing:
        raise ValueError(
            f"Tasks not found: {', '.join(missing)}. `lmms-eval tasks list` names those there are; your own need "
            "--include-path FOLDER."
        )
    tracker = EvaluationTracker(output_path=arguments.output_path)
    now = get_datetime_str(timezone=arguments.timezone)
    results = simple_evaluate(
        model=arguments.model,
        model_args=arguments.model_args,
        tasks=list(row.settings.tasks),
        batch_size=arguments.batch_size,
        device=arguments.device,
        limit=arguments.limit,
        log_samples=True,
        evaluation_tracker=tracker,
        task_manager=manager,
        cli_args=arguments,
        datetime_str=now,
        force_simple=arguments.force_simple,
        process_docs_parallel=1,
    )
    if results is None:  # not the first process
        return
    samples = results.pop("samples")
    counts = {task: len(some) for task, some in samples.items()}
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=now)
    for task, some in samples.items():
        tracker.save_results_samples(task_name=task, samples=some)
    finish(row, folder, now.replace(":", "-"), counts)


def finish(row: HarnessRow, folder: Path, stem: str, counts: dict[str, int]) -> None:
    """Check that the harness's files are whole, and mark the row as finished.

    Args:
        row: the row.
        folder: its folder.
        stem: how the names of this run's files begin.
        counts: by task, how many questions were answered.

    Raises:
        OSError: one is missing or shorter than it should be: the harness goes on where writing fails.
    """
    place = folder / "harness"
    try:
        results = next(place.rglob(stem + RESULTS))
        json.loads(results.read_text(encoding="utf-8"))
        files = {task: results.with_name(stem + SAMPLES.format(task=task)) for task in counts}
        lines = {task: len(path.read_text(encoding="utf-8").splitlines()) for task, path in files.items()}
    except (StopIteration, ValueError, OSError) as error:
        raise OSError(f"lmms-eval's files in {place} are not whole ({error!r}). Is the disk full?") from error
    if lines != counts:
        raise OSError(f"lmms-eval's samples in {place} are not whole: {lines} lines of {counts}. Is the disk full?")
    done: dict[str, Any] = {
        "identity": row.identity,
        "results": str(results.relative_to(folder)),
        "samples": {task: str(path.relative_to(folder)) for task, path in files.items()},
    }
    partial = folder / f"{DONE}.partial"
    partial.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / DONE)


def main(folder: Path) -> None:
    """Run the row of a folder; errors end the process with status 1 and one line that says why."""
    with ending_the_run("the harness"):
        run_row(read_row(folder), folder)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except StoppedRun as stopped:
        print(stopped, file=sys.stderr, flush=True)
        os._exit(1)  # others wait for this process in collective calls that it no longer takes part in
