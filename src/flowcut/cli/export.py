"""The command ``flowcut export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    DtypeOption,
    prepare_mini,
    printable,
    quiet_libraries,
    quiet_transformers,
    user_errors,
)

FORMATS = ("huggingface", "llava")


def export_command(
    model: Annotated[str, typer.Argument(help="flowcut-mini, a folder or a hub id.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    form: Annotated[
        str, typer.Option("--format", help="huggingface, or llava: the format of LLaVA's own scripts.")
    ] = "huggingface",
    vision_tower: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="llava: the tower's name, where it is not LLaVA-1.5's.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="llava: the tokenizer.model of the language model, which LLaVA's scripts read.", show_default=False
        ),
    ] = None,
    dtype: DtypeOption = None,
) -> None:
    """Write a whole checkpoint: adapters merged, in either format, with what it remembers of its training."""
    errors = Console(stderr=True)
    with user_errors():
        if form not in FORMATS:
            raise ValueError(f"--format must be {' or '.join(FORMATS)}, got {form!r}.")
        if tokenizer is not None and not tokenizer.is_file():
            raise FileNotFoundError(f"There is no file {str(tokenizer)!r} (--tokenizer).")
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"{target} is not empty. Choose a new folder.")
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with quiet_libraries(errors):
            quiet_transformers()
            from ..checkpoints.llava_export import export_llava
            from ..checkpoints.loading import choose_device, choose_dtype, read_checkpoint
            from ..checkpoints.memory import read_memory, write_memory

            wanted = None if dtype is None else choose_dtype(dtype, choose_device("cpu"))
            with errors.status(f"Loading {printable(model)} ..."):
                memory = read_memory(model) if model != DEFAULT_MODEL else None
                loaded, processor = read_checkpoint(model, wanted, with_processor=True)
            with errors.status("Writing ..."):
                if form == "llava":
                    export_llava(loaded, processor, target, vision_tower=vision_tower, slow_tokenizer=tokenizer)
                else:
                    loaded.save_pretrained(target)
                    processor.save_pretrained(target)
                if memory is not None:
                    write_memory(memory.method, target)
        Console(soft_wrap=True).print(f"Written to {printable(target)} in the format of {form}")
        if form == "llava" and not (target / "tokenizer.model").is_file():
            errors.print(
                "[yellow]LLaVA's scripts read the language model's tokenizer.model, which is not in the checkpoint; "
                "give it with --tokenizer, or put it into the folder.[/]",
                soft_wrap=True,
            )
