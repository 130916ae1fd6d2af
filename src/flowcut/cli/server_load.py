"""The part of ``flowcut bench`` that asks running servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .options import RunOptions, printable, progress_bar, quiet_libraries, user_errors

HEADINGS = ("server", "prompt tokens", "requests/s", "of the first", "first token s (90%)", "tokens/s", "cache")


@dataclass(frozen=True)
class Rounds:
    """How servers are asked; see :func:`~flowcut.measure.load.measure_load`."""

    clients: int
    requests: int
    rounds: int
    new_tokens: int


def load_servers(
    servers: Sequence[str], image: str | None, question: str, plan: Rounds, output: Path | None, options: RunOptions
) -> None:
    """Measure servers in turns and show what came of it; the first is what the others are compared with.

    Args:
        servers: their addresses.
        image: a picture or a folder of pictures.
        question: asked about each.
        plan: clients, requests and rounds.
        output: folder for ``load.json``.
        options: where errors go, and whether JSON is printed.
    """
    with user_errors():
        with quiet_libraries(options.errors):
            from ..measure.load import measure_load, picture_files

            pictures = picture_files(image)
        with progress_bar(options.errors, disable=options.as_json) as bar:
            total = len(servers) * (plan.clients + plan.rounds * plan.requests)
            task = bar.add_task("Asking", total=total)
            loads = measure_load(
                [server.rstrip("/") for server in servers],
                pictures,
                question,
                clients=plan.clients,
                requests=plan.requests,
                rounds=plan.rounds,
                max_tokens=plan.new_tokens,
                advance=lambda: bar.advance(task),
            )
        figures = [load.as_dict() for load in loads]
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "load.json").write_text(json.dumps({**vars(plan), "servers": figures}, indent=2) + "\n")
    if options.as_json:
        typer.echo(json.dumps({**vars(plan), "servers": figures}))
    else:
        table = Table(title=f"{plan.clients} clients, {plan.rounds} rounds of {plan.requests} requests")
        for heading in (
            "server",
            "prompt tokens",
            "requests/s",
            "of the first",
            "first token s (90%)",
            "tokens/s",
            "cache",
        ):
            table.add_column(heading)
        for one in figures:
            first = figures[0]["requests_per_second"] or float("nan")
            use = one["cache_use"]
            table.add_row(
                escape(one["server"]),
                f"{one['prompt_tokens'] or 0:.0f}",
                f"{one['requests_per_second']:.2f}",
                f"{one['requests_per_second'] / first:.2f}x",
                f"{one['first_token'] or 0:.2f} ({one['first_token_90'] or 0:.2f})",
                f"{one['tokens_per_second']:.1f}",
                "" if use is None else f"{use:.1%}",
            )
        Console().print(table)
    failures = [failure for load in loads for failure in load.failures]
    if failures:
        options.errors.print(f"[red]{len(failures)} requests failed; the first: {printable(failures[0])}[/]")
        raise typer.Exit(1)
