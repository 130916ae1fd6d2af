"""The command line. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape

from .eval import eval_command
from .options import (
    DEFAULT_MODEL,
    DEFAULT_TARGET,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RepeatsOption,
    TokensOption,
    prepare_mini,
    quiet_libraries,
    user_errors,
)
from .tables import print_comparison, print_list, print_result

if TYPE_CHECKING:
    from PIL import Image

    from ..inputs.clips import Clip
    from ..measure.run import RunResult
    from ..methods import Method

DEMO_OVERLAY = Path("flowcut-demo.png")

app = typer.Typer(
    name="flowcut",
    help="Training-free visual-token pruning for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("eval")(eval_command)


@app.command("run")
def run_command(
    image: Annotated[
        Path, typer.Argument(help="A picture (PNG, JPEG, ...) or a video (MP4, ...).", show_default=False)
    ],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="How to cut; `flowcut methods` lists them.")] = "flowcut",
    target_num: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help=f"Visual tokens kept of every image; {DEFAULT_TARGET} if neither is given.",
            show_default=False,
        ),
    ] = None,
    retain_ratio: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="The same as a share of the image's tokens, in (0, 1].", show_default=False),
    ] = None,
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
    with user_errors():
        from ..inputs.clips import is_video, load_clip
        from ..inputs.pictures import load_image
        from ..methods import make_method

        if target_num is None and retain_ratio is None:
            target_num = DEFAULT_TARGET
        chosen = make_method(method, target_num, retain_ratio)
        picture = load_clip(image, frames) if is_video(image) else load_image(image)
        limits = (max_new_tokens, repeats, device, dtype)
        show_run(picture, str(image), question, chosen, model, overlay, *limits, as_json)


@app.command("demo")
def demo_command(
    target_num: Annotated[int, typer.Option(min=1, help="Visual tokens kept of the picture.")] = DEFAULT_TARGET,
    overlay: Annotated[Path, typer.Option(help="Where to draw what was cut, layer by layer.")] = DEMO_OVERLAY,
    as_json: JsonOption = False,
) -> None:
    """Ask flowcut-mini about a picture that ships with flowcut; everything works offline."""
    with user_errors():
        from ..methods import make_method
        from ..tasks.demo import demo_scene

        scene, question = demo_scene()
        chosen = make_method("flowcut", target_num)
        picture = scene.picture()
        show_run(picture, scene.name, question.text, chosen, DEFAULT_MODEL, overlay, 16, 1, None, None, as_json)


def show_run(
    picture: Image.Image | Clip,
    name: str,
    question: str,
    method: Method,
    model: str,
    overlay: Path | None,
    max_new_tokens: int,
    repeats: int,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Load the model, answer with and without ``method``, draw the overlay, print it all."""
    errors = Console(stderr=True)
    if model == DEFAULT_MODEL:
        prepare_mini(errors)
    with errors.status("Starting ...") as status, quiet_libraries(errors):
        from ..checkpoints.loading import load_model
        from ..inputs.clips import Clip
        from ..measure.run import run
        from ..view.filmstrip import save_frames, seen_frames
        from ..view.overlay import check_path, save_cuts, seen_pixels

        if overlay is not None:
            check_path(overlay)
        status.update(f"Loading {escape(model)} ...")
        loaded = load_model(model, device, dtype)
        status.update(f"Answering {2 * (repeats + 1)} times, with and without {method.name} ...")
        result = run(loaded, method, picture, question, max_new_tokens=max_new_tokens, repeats=repeats)
        if overlay is not None:
            status.update("Drawing ...")
            first, header = result.images[0], overlay_header(result)
            if isinstance(picture, Clip):
                seen = seen_frames(result.pixel_values, loaded.processor.video_processor, picture, first)
                save_frames(overlay, seen, first, header)
            else:
                pixels = seen_pixels(result.pixel_values, loaded.processor.image_processor, picture, first)
                save_cuts(overlay, pixels, first, header)
    if as_json:
        report = {
            "model": model,
            "image": name,
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            **result.as_dict(),
            "overlay": None if overlay is None else str(overlay),
        }
        typer.echo(json.dumps(report))
        return
    print_result(Console(), result)
    if overlay is not None:
        Console(soft_wrap=True).print(f"Overlay written to {escape(str(overlay))}")


@app.command("compare")
def compare_command(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, ...", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: ModelOption = DEFAULT_MODEL,
    methods: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names, separated by commas; all of `flowcut methods` if not given.", show_default=False),
    ] = None,
    target_num: Annotated[int, typer.Option(help="The budget of each, as it counts it.")] = DEFAULT_TARGET,
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
    errors = Console(stderr=True)
    with user_errors():
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with errors.status("Starting ...") as status, quiet_libraries(errors):
            from ..checkpoints.loading import load_model
            from ..inputs.pictures import load_image
            from ..measure.compare import compare
            from ..methods import METHODS, make_method
            from ..view.comparison import save_comparison
            from ..view.overlay import check_path, seen_pixels

            names = list(METHODS) if methods is None else [name.strip() for name in methods.split(",")]
            chosen = [make_method(name, target_num) for name in dict.fromkeys(names)]
            picture = load_image(image)
            if output is not None:
                check_path(output)
            status.update(f"Loading {escape(model)} ...")
            loaded = load_model(model, device, dtype)
            status.update(f"Answering {(len(chosen) + 1) * (repeats + 1)} times ...")
            result = compare(loaded, chosen, picture, question, max_new_tokens=max_new_tokens, repeats=repeats)
            if output is not None:
                status.update("Drawing ...")
                image_processor = loaded.processor.image_processor
                pixels = seen_pixels(result.pixel_values, image_processor, picture, result.image)
                save_comparison(output, pixels, result)
        if as_json:
            typer.echo(json.dumps({"model": model, "image": str(image), **result.as_dict()}))
            return
        print_comparison(Console(), result)
        if output is not None:
            Console(soft_wrap=True).print(f"Picture written to {escape(str(output))}")


@app.command("models")
def models_command(
    as_json: JsonOption = False,
) -> None:
    """List the supported models."""
    from ..models import FAMILIES

    rows = [
        {
            "name": family.name,
            "class": family.class_name,
            "vision_towers": list(family.towers),
            "examples": list(family.hub_ids),
        }
        for family in FAMILIES
    ]
    print_list("models", rows, as_json)


@app.command("methods")
def methods_command(
    as_json: JsonOption = False,
) -> None:
    """List the methods and their settings."""
    from ..methods import METHODS, Method

    budget = {field.name for field in fields(Method)}
    rows: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        settings = {field.name: field.default for field in fields(method) if field.name not in budget}
        rows.append(
            {
                "name": name,
                "summary": method.summary,
                "stage": method.stage,
                "needs": [need for need, so in {"text": method.reads_text, "CLS": method.requires_cls}.items() if so],
                "settings": settings,
            }
        )
    print_list("methods", rows, as_json)


def overlay_header(result: RunResult) -> list[str]:
    """What stands above the overlay's panels."""
    return [
        result.question,
        f"All {result.uncut.visual_tokens} visual tokens: {result.uncut.answer or '(no text)'}",
        f"{result.method.name}, {result.cut.visual_tokens} visual tokens: {result.cut.answer or '(no text)'}",
    ]
