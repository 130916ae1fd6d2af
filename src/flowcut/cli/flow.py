"""The command ``flowcut flow``."""

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
    RunOptions,
    TokensOption,
    numbers,
    opened_model,
    printable,
    quiet_libraries,
    user_errors,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..inputs.clips import Clip
    from ..measure.seeing import Sight
    from ..methods import FlowCut, Method


@dataclass(frozen=True)
class Wanted:
    """What is drawn.

    Attributes:
        visual, name: the picture or clip, and what the report calls it.
        question: what is asked.
        method: FlowCut with its budget.
        figures: the folder of the figures, if any.
        report: the file of the report, if any.
        compared: the methods in the report.
    """

    visual: Image.Image | Clip
    name: str
    question: str
    method: FlowCut
    figures: Path | None
    report: Path | None
    compared: list[Method]


def flow_command(
    image: Annotated[str, typer.Argument(help="A picture (PNG, JPEG, ...) or a video (MP4, ...).", show_default=False)],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw the paper's figures into this folder, as PNG and SVG.", show_default=False),
    ] = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a page to look around in: one HTML file.", show_default=False),
    ] = None,
    question: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the model is asked about it.", show_default=False),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    target_num: Annotated[int, typer.Option(min=1, help="Visual tokens kept of every image.")] = DEFAULT_TARGET,
    methods: Annotated[
        str, typer.Option(help="What the report compares, separated by commas.")
    ] = "flowcut,flowcut_plus,visionzip,random",
    budgets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="The budgets at which it does, such as 32,64,128; by default half, all and twice of --target-num.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken of a video, at equal distances.")] = 8,
    max_new_tokens: TokensOption = 64,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how information flows in a model: the paper's figures for any picture, and a report to look around in."""
    options = RunOptions(model, max_new_tokens, 1, device, dtype, None, as_json)
    with user_errors():
        if output is None and report is None:
            raise ValueError("Nothing to write: give --output FOLDER for the figures, --report FILE.html, or both.")
        with quiet_libraries(options.errors):
            from ..inputs.clips import is_video, load_clip
            from ..inputs.pictures import load_image
            from ..inputs.prompting import checked_question
            from ..measure.seeing import QUESTION
            from ..methods import FlowCut

            asked = checked_question(QUESTION if question is None else question)
            visual = load_clip(image, frames) if is_video(image) else load_image(image)
            compared = [] if report is None else chosen_methods(methods, budgets, target_num)
            if report is not None:
                check_report(report)
        wanted = Wanted(visual, image, asked, FlowCut(target_num=target_num), output, report, compared)
        written = draw_flow(wanted, options)
    if as_json:
        typer.echo(json.dumps(written))
        return
    console = Console(soft_wrap=True)
    for path in written["files"]:
        console.print(f"Written: {printable(path)}")


def chosen_methods(names: str, budgets: str | None, target_num: int) -> list[Method]:
    """Every method at every budget.

    Raises:
        ValueError: a name or a budget that there is not.
    """
    from ..methods import make_methods

    if budgets is None:
        chosen = {max(1, target_num // 2), target_num, 2 * target_num}
    else:
        chosen = set(numbers("--budgets", budgets))
    return [method for budget in sorted(chosen) for method in make_methods(names, budget, None)]


def check_report(path: Path) -> None:
    """Make sure that a report can be written.

    Raises:
        ValueError, FileNotFoundError: it cannot.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"The report {str(path)!r} must end in .html.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} for the report does not exist.")


def draw_flow(wanted: Wanted, options: RunOptions) -> dict[str, Any]:
    """Load the model, look, draw; what was written, and the numbers of the schedule."""
    with opened_model(options) as (loaded, status):
        from ..measure.seeing import see
        from ..view.maps import pictures_of

        status.update("Looking ...")
        sight = see(loaded, wanted.visual, wanted.method, wanted.question)
        pictures = pictures_of(sight, wanted.visual, loaded.processor)
        files: list[Path] = []
        if wanted.figures is not None:
            from ..view.flow import save_figures

            status.update("Drawing ...")
            files += save_figures(wanted.figures, sight, pictures)
        if wanted.report is not None:
            from ..measure.compare import compare
            from ..view.flow_report import report_data, save_flow_report

            status.update(f"Answering with {len(wanted.compared)} methods and budgets ...")
            comparison = compare(
                loaded,
                wanted.compared,
                wanted.visual,
                wanted.question,
                max_new_tokens=options.max_new_tokens,
                repeats=options.repeats,
            )
            data = report_data(sight, pictures, comparison, options.model, Path(wanted.name).name)
            files.append(save_flow_report(wanted.report, data))
    return {"model": options.model, "image": wanted.name, **numbers_of(sight), "files": [str(path) for path in files]}


def numbers_of(sight: Sight) -> dict[str, Any]:
    """What the figures show, in numbers."""
    return {
        "question": sight.question,
        "target_num": sight.method.target_num,
        "global_token": sight.flow.tiles[0].global_token,
        "entropy_ratio": [tile.entropy_ratio.tolist() for tile in sight.flow.tiles],
        "similarity": [tile.similarity.tolist() for tile in sight.flow.tiles],
        "tokens_after_layer": list(sight.trace.tokens_after_layer),
    }
