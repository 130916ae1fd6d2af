"""The command ``flowcut score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .options import JsonOption, user_errors

if TYPE_CHECKING:
    from ..llava_files.scores import Score


def score_command(
    answers: Annotated[Path, typer.Argument(help="An answer file, ours or LLaVA's own.", show_default=False)],
    annotations: Annotated[
        Path,
        typer.Option(help="The folder with coco_pope_*.json or problems.json, or TextVQA's .json.", show_default=False),
    ],
    questions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="POPE's question file, which holds the categories.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge an answer file of POPE, TextVQA or ScienceQA by the published metric."""
    with user_errors():
        from ..llava_files.scores import score_answers

        score = score_answers(answers, annotations, questions)
        if as_json:
            typer.echo(json.dumps(score.as_dict()))
        else:
            print_score(score)


def print_score(score: Score) -> None:
    """Print the metric with its interval, and the further figures."""
    console = Console()
    low, high = score.interval
    console.print(
        f"[bold]{escape(score.benchmark)}[/]: {score.metric} {score.value:.2f}% "
        f"(95% interval {low:.2f} to {high:.2f}), {score.questions} questions"
    )
    if not score.details:
        return
    table = Table("")
    for heading in next(iter(score.details.values())):
        table.add_column(heading, justify="right")
    for name, figures in score.details.items():
        table.add_row(
            escape(name),
            *(f"{value:.0f}" if heading == "questions" else f"{value:.2f}" for heading, value in figures.items()),
        )
    console.print(table)
