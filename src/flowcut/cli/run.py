"""The command ``flowcut run``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

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
    RetainOption,
    RunOptions,
    TokensOption,
    opened_model,
    printable,
    quiet_libraries,
    recalled,
    user_errors,
    warn_of_budget,
)
from .tables import print_result

if TYPE_CHECKING:
    from PIL import Image

    from ..checkpoints.memory import Memory
    from ..inputs.clips import Clip
    from ..measure.run import RunResult
    from ..methods import Method


@dataclass(frozen=True)
class Subject:
    """What is asked about.

    Attributes:
        picture: a picture, or the frames of a video.
        name: what the report calls it.
        question: what is asked.
    """

    picture: Image.Image | Clip
    name: str
    question: str


def run_command(
    image: Annotated[str, typer.Argument(help="A picture (PNG, JPEG, ...) or a video (MP4, ...).", show_default=False)],
    question: QuestionArgument,
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How to cut; `flowcut methods` lists them. By default what the checkpoint was trained with, else "
            "flowcut.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the method, such as history=0.7; may be repeated. `flowcut methods NAME` lists them.",
            show_default=False,
        ),
    ] = None,
    target_num: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help=f"Visual tokens kept of every image; what the checkpoint was trained with, else {DEFAULT_TARGET}, if "
            "neither is given.",
            show_default=False,
        ),
    ] = None,
    retain_ratio: RetainOption = None,
    overlay: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw what was cut, layer by layer, into this picture.", show_default=False),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken of a video, at equal distances.")] = 8,
    max_new_tokens: TokensOption = 64,
    repeats: RepeatsOption = 3,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about an image or a video with and without cutting, and show what each cost."""
    options = RunOptions(model, max_new_tokens, repeats, device, dtype, overlay, as_json)
    with user_errors():
        with quiet_libraries(options.errors):
            from ..inputs.clips import is_video, load_clip
            from ..inputs.pictures import load_image
            from ..inputs.prompting import checked_question

            checked_question(question)
            picture = load_clip(image, frames) if is_video(image) else load_image(image)
            memory = recalled(model, options.errors)
            chosen = chosen_method(method, settings or [], target_num, retain_ratio, memory)
            warn_of_budget(memory, [chosen], options.errors)
        show_run(Subject(picture, image, question), chosen, options)


def chosen_method(
    expression: str | None,
    settings: list[str],
    target_num: int | None,
    retain_ratio: float | None,
    memory: Memory | None = None,
) -> Method:
    """The method with its settings and its budget.

    Args:
        expression: a method as text; ``None`` for that of ``memory``, else FlowCut.
        settings: each ``NAME=VALUE``.
        target_num, retain_ratio: the budget; where neither is given, that of ``memory``, else the default one.
        memory: what the checkpoint was trained with.

    Raises:
        ValueError: unknown names, values that are not allowed, or more than one budget.
    """
    from ..methods import METHODS
    from ..methods.naming import describe, read_expression

    if expression is None:
        expression = "flowcut" if memory is None else describe(memory.method)
    chosen = read_expression(expression, METHODS).with_settings(settings)
    if target_num is None and retain_ratio is None:
        if memory is not None:
            target_num, retain_ratio = memory.method.target_num, memory.method.retain_ratio
        else:
            target_num = DEFAULT_TARGET
    elif chosen.has_budget:
        raise ValueError(f"The budget is given twice: in {chosen}, and as --target-num or --retain-ratio.")
    return chosen.build(target_num, retain_ratio)


def show_run(subject: Subject, method: Method, options: RunOptions) -> None:
    """Load the model, answer with and without ``method``, draw the overlay, print it all."""
    with opened_model(options) as (loaded, status):
        from ..measure.run import run

        status.update(f"Answering {2 * options.repeats + 2} times, with and without {method.name} ...")
        result = run(
            loaded,
            method,
            subject.picture,
            subject.question,
            max_new_tokens=options.max_new_tokens,
            repeats=options.repeats,
        )
        if options.drawing is not None:
            status.update("Drawing ...")
            draw_run(options.drawing, result, subject.picture, loaded.processor)
    if options.as_json:
        report = {
            "model": options.model,
            "image": subject.name,
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            **result.as_dict(),
            "overlay": None if options.drawing is None else str(options.drawing),
        }
        typer.echo(json.dumps(report))
        return
    print_result(Console(), result)
    if options.drawing is not None:
        Console(soft_wrap=True).print(f"Overlay written to {printable(options.drawing)}")


def draw_run(path: Path, result: RunResult, picture: Image.Image | Clip, processor: Any) -> None:
    """The overlay of a run's first image or video, into a file."""
    from ..inputs.clips import Clip
    from ..view.filmstrip import save_frames, seen_frames
    from ..view.overlay import save_cuts, seen_pixels

    first, header = result.images[0], overlay_header(result)
    if isinstance(picture, Clip):
        seen = seen_frames(result.pixel_values, processor.video_processor, picture, first)
        save_frames(path, seen, first, header)
    else:
        pixels = seen_pixels(result.pixel_values, processor.image_processor, picture, first)
        save_cuts(path, pixels, first, header)


def overlay_header(result: RunResult) -> list[str]:
    """What stands above the overlay's panels."""
    from ..methods.naming import describe

    return [
        result.question,
        f"All {result.uncut.visual_tokens} visual tokens: {result.uncut.answer or '(no text)'}",
        f"{describe(result.method)}, {result.cut.visual_tokens} visual tokens: {result.cut.answer or '(no text)'}",
    ]
