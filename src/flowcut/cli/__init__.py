"""The command line. A new command is one new file here with a function ``<file name>_command``, and nothing else.

Everything heavy is imported inside the commands, so that ``flowcut --help`` starts at once.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Annotated, Any

import typer

from .. import __version__

__all__ = ["app"]


def find_commands() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """The commands in this folder by name, from the names of its files, and what their files set for the parser."""
    for entry in pkgutil.iter_modules(__path__):
        if entry.name == "__main__":  # runs by itself, and is not to be imported before
            continue
        module = import_module(f".{entry.name}", __name__)
        command = getattr(module, f"{entry.name}_command", None)
        if command is not None:
            yield entry.name.replace("_", "-"), command, getattr(module, "CONTEXT", {})


def print_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"flowcut {__version__}")
        raise typer.Exit


def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Training-free visual-token pruning for vision-language models."""


def build_app() -> typer.Typer:
    """The application with every command in this folder."""
    built = typer.Typer(name="flowcut", no_args_is_help=True, pretty_exceptions_enable=False)
    built.callback()(main)
    for name, command, context in find_commands():
        built.command(name, context_settings=context)(command)
    return built


app = build_app()
