"""The command ``flowcut inspect``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .options import JsonOption, user_errors
from .tables import cell


def inspect_command(
    model: Annotated[
        str, typer.Argument(help="flowcut-mini, or a folder or a hub id in Hugging Face's format.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Tell what can be cut in a model, from its config alone; no weights are read."""
    with user_errors():
        from ..checkpoints.inspecting import inspect_checkpoint

        found = inspect_checkpoint(model).as_dict()
    if as_json:
        typer.echo(json.dumps({"inspect": found}))
        return
    table = Table(show_header=False, show_lines=True)
    table.add_column(style="bold cyan")
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(escape(name.replace("_", " ")), cell(value))
    Console().print(table)
