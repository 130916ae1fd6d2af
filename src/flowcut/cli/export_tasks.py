"""The command ``flowcut export-tasks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .eval import names_in
from .options import JsonOption, printable, quiet_libraries, user_errors


def export_tasks_command(
    folder: Annotated[Path, typer.Argument(help="Where to write them; made if needed.", show_default=False)],
    split_name: Annotated[
        str, typer.Option("--split", help="test-v1, new-v1 (with cut-outs held out from training) or photo-v2.")
    ] = "test-v1",
    tasks: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="At most so many questions, as flowcut eval --limit takes them.", show_default=False),
    ] = None,
    per_task: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="So many questions of each task, as flowcut eval --per-task.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the built-in tasks for lmms-eval: pictures, questions and YAMLs for its --include_path."""
    errors = Console(stderr=True)
    with user_errors():
        with quiet_libraries(errors), errors.status("Writing ..."):
            from ..harness.exporting import export_tasks
            from ..tasks import TASKS, load_split
            from ..tasks.evaluation import choose_questions

            split = load_split(split_name)
            asked = choose_questions(split, list(TASKS) if tasks == "all" else names_in(tasks), limit, per_task)
            names = export_tasks(folder, split, asked)
        total = sum(len(questions) for _, _, questions in asked)
        if as_json:
            typer.echo(json.dumps({"folder": str(folder), "questions": total, "tasks": names}))
            return
        console = Console(soft_wrap=True)
        console.print(f"{total} questions in {printable(folder)}. Tasks for lmms-eval: {', '.join(names)}")
        chosen = f"--include-path {printable(folder)} --tasks {names[0]}"
        console.print(f"flowcut eval --harness lmms-eval {chosen} --methods none,flowcut")
