"""What the page shows: pictures as data addresses, so that nothing is written, and tables as HTML."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..inputs.clips import Clip
from ..methods.naming import describe
from ..trace import ImageTrace
from ..view.comparison import shortened
from ..view.filmstrip import seen_rows
from ..view.flow_report import report_data, report_page
from ..view.maps import pictures_of
from ..view.overlay import Panel, Pixels, draw_panels, kept_grid, kept_rows
from .answering import Answered, Answers, Desk, Visual

ANSWER_CHARACTERS = 16
"""Of an answer above a panel."""

PREVIEW = 420
"""Longest side of the preview, in pixels."""


@dataclass(frozen=True)
class Step:
    """One place on the slider.

    Attributes:
        title: what has been done to the picture until here.
        kept: patches that are left, into the grid.
    """

    title: str
    kept: Tensor


def steps_of(answered: Answered) -> list[Step]:
    """The way of a picture through a method: whole, after every cut in the tower, and behind it."""
    image, end = answered.image, answered.at_the_end
    if image is None or end is None:
        return []
    steps = [Step("as it came", torch.arange(math.prod(image.grid)))]
    steps += [Step(f"after vision layer {layer}", kept) for layer, kept in sorted(image.kept_after_layer.items())]
    steps += [Step("into the language model", image.kept), Step("after its last layer", end)]
    return [step for number, step in enumerate(steps) if not number or len(step.kept) < len(steps[number - 1].kept)]


def seen(desk: Desk, answers: Answers) -> list[Pixels]:
    """The picture, or the frames of the clip, as the model saw it."""
    assert answers.image is not None
    return seen_rows(answers.pixel_values, desk.loaded.processor, answers.visual, answers.image)


def draw_steps(pixels: list[Pixels], image: ImageTrace, steps: list[Step]) -> str:
    """A picture, or a row of frames, with what is left at every step; only the last one shows."""
    drawn = [draw_step(pixels, image, step) for step in steps]
    hidden = ["" if number == len(steps) - 1 else " hidden" for number in range(len(steps))]
    return "".join(f'<div class="step"{one}>{html}</div>' for one, html in zip(hidden, drawn, strict=True))


def draw_step(pixels: list[Pixels], image: ImageTrace, step: Step) -> str:
    """One of :func:`draw_steps`."""
    title = f"{step.title}: {len(step.kept)} of {image.patches}"
    if len(pixels) == 1:
        figure = draw_panels(pixels[0], image.grid, [(title, kept_grid(step.kept, image.grid))])
    else:
        alive = enumerate(kept_rows(step.kept, image.grid))
        panels: list[Panel] = [(f"frame {number} · {int(one.sum())}", one) for number, one in alive]
        figure = draw_panels(pixels, image.grid[1:], panels, [title])
    return figure_html(figure, title, "jpeg")


def draw_grid(pixels: list[Pixels], answers: Answers) -> str:
    """What every method kept in the end, side by side; of a clip its first frame."""
    image = answers.image
    assert image is not None and answers.uncut.outcome is not None
    panels: list[Panel] = [(f"uncut: {shortened(answers.uncut.outcome.answer, ANSWER_CHARACTERS)}", None)]
    for one in answers.cut:
        if one.outcome is not None and one.image is not None and one.at_the_end is not None:
            kept, whole = one.at_the_end, one.image.grid
            left = kept_grid(kept, whole) if len(pixels) == 1 else kept_rows(kept, whole)[0]
            name = "" if one.method is None else one.method.name
            panels.append((f"{name} · {len(kept)}: {shortened(one.outcome.answer, ANSWER_CHARACTERS)}", left))
    grid = image.grid if len(pixels) == 1 else image.grid[1:]
    return figure_html(draw_panels(pixels[0], grid, panels, [answers.question]), "What every method kept")


def name_of(answered: Answered) -> str:
    """A method with its budget, or ``uncut``."""
    return "uncut" if answered.method is None else describe(answered.method, budget=True)


def table_html(answers: Answers, waiting: int) -> str:
    """Answers and costs, of one run each.

    Args:
        answers: what is there.
        waiting: how many are still to come.
    """
    header = ("", "answer", "visual tokens", "first token", "whole answer", "GFLOPs of the prompt")
    whole = answers.uncut.outcome
    lines = []
    for one in (answers.uncut, *answers.cut):
        if one.outcome is None:
            cells = f'<td colspan="5">{escape(one.refusal)}</td>'
        else:
            seconds, flops = one.outcome.seconds, one.outcome.flops
            first = seconds.tower + seconds.rest + seconds.prefill
            assert whole is not None
            faster = "" if one is answers.uncut else f" ({whole.seconds.total / seconds.total:.1f} times as fast)"
            known = flops is not None
            values = (
                one.outcome.answer or "(no text)",
                f"{one.outcome.visual_tokens}" if known else "…",
                f"{first:.2f} s",
                f"{seconds.total:.2f} s{faster}",
                f"{flops.total / 1e9:.1f}" if known else "…",
            )
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{escape(name_of(one))}</th>{cells}</tr>')
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    told = f"{waiting} more to come …" if waiting else "One run each, on a machine that may have other work."
    note = f'<p role="status">{told}</p>'
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"


def preview_html(visual: Visual) -> str:
    """The picture, or the first frame of the clip, small."""
    clip = isinstance(visual, Clip)
    picture = Image.fromarray(visual.frames[0]) if isinstance(visual, Clip) else visual.copy()
    size = f"{len(visual.frames)} frames" if isinstance(visual, Clip) else f"{visual.width} x {visual.height} pixels"
    picture.thumbnail((PREVIEW, PREVIEW))
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=88)
    return image_html(stored, "jpeg", f"The first frame of the clip, {size}" if clip else f"Your picture, {size}")


def figure_html(figure: Figure, text: str, kind: str = "png") -> str:
    """A figure of matplotlib in the page."""
    stored = io.BytesIO()
    figure.savefig(stored, format=kind, dpi=110)
    return image_html(stored, kind, text)


def image_html(stored: io.BytesIO, kind: str, text: str) -> str:
    """An image in the page, with a text for those who do not see it."""
    address = base64.b64encode(stored.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{address}" style="max-width:100%">'


def report_html(desk: Desk, answers: Answers, target_num: int, model: str) -> str:
    """A link to the report of ``flowcut flow --report``, which is inside the link.

    Raises:
        UnsupportedModelError: see :meth:`~flowcut.app.answering.Desk.look`.
    """
    sight = desk.look(answers, target_num)
    pictures = pictures_of(sight, answers.visual, desk.loaded.processor)
    page = report_page(report_data(sight, pictures, None, model, "your picture"))
    address = base64.b64encode(page.encode()).decode()
    return (
        f'<a download="flowcut-report.html" href="data:text/html;base64,{address}">Save the report on FlowCut with '
        f"{target_num} visual tokens</a> (one file of {len(page) / 2**20:.1f} MB, opens without a network)"
    )


def problem_html(error: Exception) -> str:
    """What went wrong, for the person who asked."""
    return f'<p role="alert" class="problem"><strong>Error:</strong> {escape(" ".join(str(error).split()))}</p>'
