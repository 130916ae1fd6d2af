"""The command ``flowcut compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    DEFAULT_TARGET,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuestionArgument,
    RepeatsOption,
    RunOptions,
    TokensOption,
    opened_model,
    printable,
    quiet_libraries,
    recalled,
    user_errors,
    warn_of_budget,
)
from .tables import print_comparison

if TYPE_CHECKING:
    from PIL import Image

    from ..methods import Method


def compare_command(
    image: Annotated[str, typer.Argument(help="A picture: PNG, JPEG, ...", show_default=False)],
    question: QuestionArgument,
    model: ModelOption = DEFAULT_MODEL,
    methods: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Names separated by commas, settings in brackets: flowcut(history=0.7),visionzip; "
            "all of `flowcut methods` if not given.",
            show_default=False,
        ),
    ] = None,
    target_num: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help=f"The budget of each, as it counts it; what the checkpoint was trained with, else {DEFAULT_TARGET}.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw what each method kept into this picture.", show_default=False),
    ] = None,
    max_new_tokens: TokensOption = 64,
    repeats: RepeatsOption = 3,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about an image with several methods, and show what each kept and cost."""
    options = RunOptions(model, max_new_tokens, repeats, device, dtype, output, as_json)
    with user_errors():
        with quiet_libraries(options.errors):
            from ..inputs.pictures import load_image
            from ..inputs.prompting import checked_question

            checked_question(question)
            picture = load_image(image)
            from ..methods import METHODS, make_methods
            from ..methods.naming import describe

            memory = recalled(model, options.errors)
            budget: int | None = target_num
            ratio: float | None = None
            if budget is None:
                budget = DEFAULT_TARGET
                if memory is not None:
                    budget, ratio = memory.method.target_num, memory.method.retain_ratio
            if methods is None:
                own = [] if memory is None else [describe(memory.method)]
                methods = ",".join([*own, *METHODS])
            chosen = make_methods(methods, budget, ratio)
            warn_of_budget(memory, chosen, options.errors)
        show_comparison(picture, image, question, chosen, options)


def show_comparison(
    picture: Image.Image, name: str, question: str, methods: Sequence[Method], options: RunOptions
) -> None:
    """Load the model, answer uncut and with every method, draw what each kept, print it all.

    Args:
        picture: RGB.
        name: what the report calls it.
        question: what is asked.
        methods: what to compare.
        options: of the command.
    """
    with opened_model(options) as (loaded, status):
        from ..measure.compare import compare

        status.update(f"Answering {(len(methods) + 1) * (options.repeats + 1)} times ...")
        result = compare(
            loaded,
            methods,
            picture,
            question,
            max_new_tokens=options.max_new_tokens,
            repeats=options.repeats,
        )
        if options.drawing is not None:
            from ..view.comparison import save_comparison
            from ..view.overlay import seen_pixels

            status.update("Drawing ...")
            pixels = seen_pixels(result.pixel_values, loaded.processor.image_processor, picture, result.image)
            save_comparison(options.drawing, pixels, result)
    if options.as_json:
        typer.echo(json.dumps({"model": options.model, "image": name, **result.as_dict()}))
        return
    print_comparison(Console(), result)
    if options.drawing is not None:
        Console(soft_wrap=True).print(f"Picture written to {printable(options.drawing)}")
