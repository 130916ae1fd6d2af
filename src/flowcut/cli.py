"""The command line. Everything heavy is imported inside the commands."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_eval import eval_command

if TYPE_CHECKING:
    from PIL import Image

    from .clips import Clip
    from .compare import Comparison
    from .methods import Method
    from .run import Outcome, RunResult

DEFAULT_TARGET = 64
DEFAULT_MODEL = "flowcut-mini"
DEMO_OVERLAY = Path("flowcut-demo.png")

app = typer.Typer(
    name="flowcut",
    help="Training-free visual-token pruning for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("eval")(eval_command)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user can mend into one red line on stderr and exit code 2."""
    from .errors import FlowCutError

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
    Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] [red]{escape(message)}[/]")
    raise typer.Exit(2)


@contextlib.contextmanager
def quiet_libraries(errors: Console) -> Iterator[None]:
    """Keep stdout for the result: libraries that print reach stderr, warnings become one yellow line each."""
    from transformers.utils import logging

    library: Any = logging
    library.set_verbosity_error()
    library.disable_progress_bar()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(warning.message) for warning in caught):
                errors.print(f"[yellow]Warning: {escape(' '.join(message.split()))}[/]", soft_wrap=True)


@app.command("run")
def run_command(
    image: Annotated[
        Path, typer.Argument(help="A picture (PNG, JPEG, ...) or a video (MP4, ...).", show_default=False)
    ],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="flowcut-mini, a folder or a hub id (in Hugging Face's or LLaVA's own format)."),
    ] = DEFAULT_MODEL,
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs; the medians are shown.")] = 3,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one.", show_default=False),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="float32, bfloat16 or float16; by default bfloat16 on cuda, else float32.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Answer a question about an image or a video with and without cutting, and show what each cost."""
    with user_errors():
        from .clips import is_video, load_clip
        from .loading import load_image
        from .methods import make_method

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ask flowcut-mini about a picture that ships with flowcut; everything works offline."""
    with user_errors():
        from .demo import demo_scene
        from .methods import make_method

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
        from .clips import Clip
        from .filmstrip import save_frames, seen_frames
        from .loading import load_model
        from .picture import check_path, save_cuts, seen_pixels
        from .run import run

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


def prepare_mini(errors: Console) -> None:
    """Convert the model that ships with flowcut, at its first start, with a progress bar."""
    with quiet_libraries(errors):
        with errors.status("Starting ..."):
            from .checkpoints.mini import mini_folder
        mini_folder()


@app.command("compare")
def compare_command(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, ...", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="flowcut-mini, a folder or a hub id (in Hugging Face's or LLaVA's own format)."),
    ] = DEFAULT_MODEL,
    methods: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names, separated by commas; all of `flowcut methods` if not given.", show_default=False),
    ] = None,
    target_num: Annotated[int, typer.Option(help="The budget of each, as it counts it.")] = DEFAULT_TARGET,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw what each method kept into this picture.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs of each; the medians are shown.")] = 3,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one.", show_default=False),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="float32, bfloat16 or float16; by default bfloat16 on cuda, else float32.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Answer a question about an image with several methods, and show what each kept and cost."""
    errors = Console(stderr=True)
    with user_errors():
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with errors.status("Starting ...") as status, quiet_libraries(errors):
            from .compare import compare
            from .loading import load_image, load_model
            from .methods import METHODS, make_method
            from .picture import check_path, save_comparison, seen_pixels

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """List the supported models."""
    from .models import FAMILIES

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """List the methods and their settings."""
    from .methods import METHODS, Method

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


def print_list(name: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print ``rows`` as a table, or as JSON under ``name``."""
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    table = Table(show_lines=len(rows) > 1)
    for column in rows[0]:
        style = "bold cyan" if column == "name" else None
        table.add_column(column.replace("_", " "), style=style, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    Console().print(table)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return escape("\n".join(f"{key} = {setting}" for key, setting in value.items()))
    if isinstance(value, list):
        return escape("\n".join(value))
    return escape(str(value))


def overlay_header(result: RunResult) -> list[str]:
    """What stands above the overlay's panels."""
    return [
        result.question,
        f"All {result.uncut.visual_tokens} visual tokens: {result.uncut.answer or '(no text)'}",
        f"{result.method.name}, {result.cut.visual_tokens} visual tokens: {result.cut.answer or '(no text)'}",
    ]


def print_result(console: Console, result: RunResult) -> None:
    """Print both answers and the table of costs."""
    console.print(f"[bold]{escape(result.question)}[/]")
    for name, side in (("uncut", result.uncut), (result.method.name, result.cut)):
        answer = escape(side.answer) or "[dim](no text)[/]"
        console.print(f"[cyan]{name}[/] [dim]({side.visual_tokens} visual tokens)[/]: {answer}")
    table = Table(caption=f"Times are medians of {result.repeats} run(s) each; FLOPs are counted.")
    table.add_column("")
    for heading in ("uncut", result.method.name, "of uncut"):
        table.add_column(heading, justify="right")
    for group in zip(cost_rows(result.uncut), cost_rows(result.cut), strict=True):
        for (label, before, unit), (_, after, _) in zip(*group, strict=True):
            share = f"{after / before:.0%}" if before else "-"
            table.add_row(label, amount(before, unit), amount(after, unit), share)
        table.add_section()
    console.print(table)
    before, after = result.uncut.seconds.prefill, result.cut.seconds.prefill
    console.print(f"Prefill: {before:.2f} s uncut, {after:.2f} s cut, [bold]{before / after:.1f} times as fast[/].")


def print_comparison(console: Console, result: Comparison) -> None:
    """Print the table of methods."""
    console.print(f"[bold]{escape(result.question)}[/]")
    table = Table(
        caption=f"Tokens are visual tokens: into the language model / mean over its layers. Times are medians of "
        f"{result.repeats} run(s); FLOPs (tower, projector, prefill) are counted."
    )
    table.add_column("")
    table.add_column("answer", overflow="fold")
    for heading in ("tokens", "kv entries", "FLOPs", "tower", "prefill", "decoding"):
        table.add_column(heading, justify="right")
    for name, side, refusal in [
        ("uncut", result.uncut, ""),
        *((row.method.name, row.outcome, row.refusal) for row in result.rows),
    ]:
        if side is None:
            table.add_row(escape(name), f"[yellow]refused: {escape(refusal)}[/]")
            continue
        table.add_row(
            escape(name),
            escape(side.answer) or "[dim](no text)[/]",
            f"{side.visual_tokens} / {amount(side.visual_tokens_mean, '')}",
            amount(side.kv_entries, ""),
            amount(side.flops.total, "FLOP"),
            *(amount(time, "s") for time in (side.seconds.tower, side.seconds.prefill, side.seconds.decoding)),
        )
    console.print(table)


def cost_rows(side: Outcome) -> list[list[tuple[str, float, str]]]:
    """Label, amount and unit of every row, in groups."""
    seconds, flops = side.seconds, side.flops
    return [
        [
            ("visual tokens into the language model", side.visual_tokens, ""),
            ("visual tokens, mean over its layers", side.visual_tokens_mean, ""),
            ("key/value entries after prefill", side.kv_entries, ""),
        ],
        [
            ("FLOPs of the vision tower", flops.tower, "FLOP"),
            ("FLOPs of projector and prefill", flops.projector + flops.prefill, "FLOP"),
        ],
        [
            ("time in the vision tower", seconds.tower, "s"),
            ("time of prefill", seconds.prefill, "s"),
            ("time of decoding", seconds.decoding, "s"),
            ("time for the rest", seconds.rest, "s"),
            ("time in all", seconds.total, "s"),
        ],
        [
            ("tokens generated", side.new_tokens, ""),
            ("time of decoding, per token", seconds.decoding / max(1, side.new_tokens - 1), "s"),
        ],
    ]


def amount(value: float, unit: str) -> str:
    """A number with its unit, at a precision that can be read."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
    if unit == "FLOP":
        for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= factor:
                return f"{value / factor:.2f} {prefix}"
        return f"{value:.0f}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
