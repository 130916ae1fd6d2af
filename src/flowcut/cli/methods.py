"""The command ``flowcut methods``."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from .options import JsonOption, user_errors
from .tables import cell, plain_table, print_method

if TYPE_CHECKING:
    from ..methods import Method


def methods_command(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A method, to see its settings, what they mean, and its paper.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods and their settings, or explain one of them."""
    with user_errors():
        from ..methods import METHODS

        if name is None:
            rows = [row_of(method) for method in METHODS.values()]
            if as_json:
                typer.echo(json.dumps({"methods": rows}))
            else:
                show(Console(), rows)
            return
        if name not in METHODS:
            raise ValueError(f"Unknown method {name!r}; known: {', '.join(METHODS)}.")
        told = told_about(METHODS[name])
        if as_json:
            typer.echo(json.dumps({"method": told}))
        else:
            print_method(Console(), told)


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the list."""
    table = plain_table(left=("method", "what it does", "where", "reads"))
    for row in rows:
        table.add_row(*(cell(row[name]) for name in ("name", "summary", "stage", "needs")))
    console.print(table)
    console.print("flowcut methods NAME: the settings of one and what they mean. --json: all of them.")


def row_of(method: type[Method]) -> dict[str, Any]:
    """A method's line in the list."""
    from ..methods import Method

    shared = {field.name for field in fields(Method)}
    return {
        "name": method.name,
        "summary": method.summary,
        "stage": method.stage,
        "needs": needs_of(method),
        "settings": {field.name: field.default for field in fields(method) if field.name not in shared},
    }


def told_about(method: type[Method]) -> dict[str, Any]:
    """All there is to say about one method."""
    from ..methods.settings import settings_of

    return {
        "name": method.name,
        "summary": method.summary,
        "stage": method.stage,
        "paper": method.paper,
        "needs": needs_of(method),
        "settings": [
            {"name": one.name, "values": one.allowed, "default": one.default, "meaning": one.meaning}
            for one in settings_of(method).values()
        ],
    }


def needs_of(method: type[Method]) -> list[str]:
    """What a method cannot do without, beside a picture."""
    return [need for need, so in {"text": method.reads_text, "CLS": method.requires_cls}.items() if so]
