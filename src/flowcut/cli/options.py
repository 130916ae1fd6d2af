"""What the commands share: options, errors, keeping stdout clean, and opening the model."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

if TYPE_CHECKING:
    from ..checkpoints.loading import LoadedModel
    from ..checkpoints.memory import Memory
    from ..methods import Method

DEFAULT_TARGET = 64
DEFAULT_MODEL = "flowcut-mini"

QuestionArgument = Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)]
ModelOption = Annotated[
    str, typer.Option(help="flowcut-mini, a folder or a hub id (in Hugging Face's or LLaVA's own format).")
]
TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Measured runs of each; the medians are shown.")]
DeviceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one.", show_default=False),
]
DtypeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="float32, bfloat16 or float16; by default bfloat16 on cuda, else float32.",
        show_default=False,
    ),
]
RetainOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="The same as a share of the image's tokens, in (0, 1].", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True)
class RunOptions:
    """What the commands that ask one question have in common.

    Attributes:
        model: flowcut-mini, a folder or a hub id.
        max_new_tokens: longest answer.
        repeats: measured runs of each.
        device, dtype: by name; None for the best one here.
        drawing: the picture to draw into, if any.
        as_json: whether to print JSON.
        errors: where everything but the result is printed.
    """

    model: str = DEFAULT_MODEL
    max_new_tokens: int = 64
    repeats: int = 3
    device: str | None = None
    dtype: str | None = None
    drawing: Path | None = None
    as_json: bool = False
    errors: Console = field(default_factory=lambda: Console(stderr=True))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user can mend into one red line on stderr and exit code 2."""
    from ..errors import FlowCutError

    try:
        yield
    except (FlowCutError, OSError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        message = "The device ran out of memory. Try --dtype bfloat16, fewer --max-new-tokens, or --device cpu."
    else:
        return
    Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] [red]{printable(message)}[/]")
    raise typer.Exit(2)


def printable(text: str | Path) -> str:
    """Text for a console: no markup in it, and bytes that are not UTF-8 (a path may hold them) are written out."""
    return escape(str(text).encode(errors="backslashreplace").decode())


@contextlib.contextmanager
def quiet_libraries(errors: Console) -> Iterator[None]:
    """Keep stdout for the result: libraries that print reach stderr, warnings become one yellow line each."""
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                errors.print(f"[yellow]Warning: {printable(' '.join(message.split()))}[/]", soft_wrap=True)


def quiet_transformers() -> None:
    """Leave out what transformers tells about loading."""
    from transformers.utils import logging

    library: Any = logging
    library.set_verbosity_error()
    library.disable_progress_bar()


def prepare_mini(errors: Console) -> None:
    """Convert the model that ships with flowcut, at its first start, with a progress bar."""
    with quiet_libraries(errors):
        with errors.status("Starting ..."):
            from ..checkpoints.mini import mini_folder
        quiet_transformers()
        mini_folder()


@contextlib.contextmanager
def opened_model(options: RunOptions) -> Iterator[tuple[LoadedModel, Status]]:
    """The model of a command, ready to answer, and the line that tells what is being done."""
    errors = options.errors
    if options.model == DEFAULT_MODEL:
        prepare_mini(errors)
    with errors.status("Starting ...") as status, quiet_libraries(errors):
        if options.drawing is not None:
            from ..view.overlay import check_path

            check_path(options.drawing)
        quiet_transformers()
        from ..checkpoints.loading import load_model

        status.update(f"Loading {printable(options.model)} ...")
        yield load_model(options.model, options.device, options.dtype), status


def recalled(model: str, errors: Console) -> Memory | None:
    """What a checkpoint was trained with, told on stderr; ``None`` where it does not say."""
    if model == DEFAULT_MODEL:
        return None
    from ..checkpoints.memory import read_memory

    memory = read_memory(model)
    if memory is not None:
        errors.print(f"{printable(model)} was trained with {printable(str(memory))} ({printable(memory.source)}).")
    return memory


def warn_of_budget(memory: Memory | None, methods: Sequence[Method], errors: Console) -> None:
    """Say once where a checkpoint is run with another budget than it was trained with."""
    told = [] if memory is None else [memory.difference(method) for method in methods]
    for sentence in dict.fromkeys(filter(None, told)):
        errors.print(f"[yellow]Warning: {printable(sentence)}[/]", soft_wrap=True)


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        ValueError: one is not a number of at least 1.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"{option} takes whole numbers of at least 1 separated by commas, such as 192,64; got {text!r}."
        )
    return [int(part) for part in parts]


def progress_bar(console: Console | None = None, *, disable: bool = False) -> Progress:
    """A bar that tells how many of how many are done, and how long the rest will take.

    Args:
        console: where it is shown; None for standard output.
        disable: whether to show nothing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=disable)
