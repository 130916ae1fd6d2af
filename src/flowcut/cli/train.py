"""The command ``flowcut train``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    JsonOption,
    prepare_mini,
    printable,
    quiet_libraries,
    quiet_transformers,
    user_errors,
)


def train_command(
    config: Annotated[Path, typer.Argument(help="A YAML file; docs/train.md lists its keys.", show_default=False)],
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of going on from a checkpoint.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use an accelerator.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model with cutting, or go on where the run was interrupted.

    Several processes are started with accelerate: accelerate launch --config_file FILE -m flowcut.cli train CONFIG.
    """
    errors = Console(stderr=True)
    with user_errors():
        with quiet_libraries(errors):
            from ..training.reading import read_config

            settings = read_config(config)
        if settings.model == DEFAULT_MODEL:
            prepare_mini(errors)
        with quiet_libraries(errors):
            with errors.status("Starting ..."):
                check_libraries()
                quiet_transformers()
                from ..training.processes import leave
                from ..training.run import train

            def tell(line: str) -> None:
                errors.print(printable(line), soft_wrap=True)

            result = train(settings, fresh=fresh, cpu=cpu, tell=tell)
            if not leave():
                return
        if as_json:
            typer.echo(json.dumps(asdict(result)))
            return
        console = Console(soft_wrap=True)
        trained, total = result.trained
        loss = "" if result.loss is None else f", mean loss {result.loss:.3f}"
        told = f"{result.steps} updates with {printable(result.method)}, {trained:,} of {total:,} weights trained{loss}"
        console.print(told)
        for name, value in result.evaluation.items():
            if name in ("eval_loss", "eval_accuracy"):
                console.print(f"{name.removeprefix('eval_')} at the end: {value:.3f}")
        console.print(f"Written to {printable(result.output)}; flowcut run and eval take it as --model")


def check_libraries() -> None:
    """Refuse to begin without what training needs.

    Raises:
        FlowCutError: a library is missing.
    """
    from importlib.util import find_spec

    from ..errors import FlowCutError

    missing = [name for name in ("accelerate", "peft") if find_spec(name) is None]
    if missing:
        raise FlowCutError(f"Training needs {' and '.join(missing)}: pip install 'flowcut[train]'.")
