"""The command ``flowcut app``."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RunOptions,
    TokensOption,
    opened_model,
    printable,
    user_errors,
)


def app_command(
    model: ModelOption = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    max_new_tokens: TokensOption = 32,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """A page in the browser: ask about a picture or a clip, uncut and cut, and look at what was cut."""
    options = RunOptions(model, max_new_tokens, 1, device, dtype)
    with user_errors():
        if importlib.util.find_spec("gradio") is None:
            raise FileNotFoundError("The page needs Gradio: pip install 'flowcut[app]'.")
        with opened_model(options) as (loaded, status):
            from ..app.answering import Desk

            desk = Desk(loaded, max_new_tokens)
            status.update("Answering once ...")
            desk.warm_up()
        from ..app.hosting import serve_page

        def build() -> object:
            from ..app.page import build_page

            return build_page(desk, model, model == DEFAULT_MODEL)

        console = Console(soft_wrap=True)
        serve_page(build, host, port, lambda place: console.print(f"Open {printable(place)} (Ctrl-C ends it)"))
