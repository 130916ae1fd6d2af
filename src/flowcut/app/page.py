"""The page itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import FlowCutError
from ..methods import METHODS, make_methods
from ..methods.naming import read_expressions
from ..view.overlay import Pixels
from .answering import Answered, Answers, Desk, Visual
from .drawing import (
    draw_grid,
    draw_steps,
    name_of,
    preview_html,
    problem_html,
    report_html,
    seen,
    steps_of,
    table_html,
)
from .samples import SAMPLES
from .uploads import KINDS, MEGABYTES, MEGAPIXELS, read_upload

MINI_NOTE = (
    "flowcut-mini was trained on cut-outs that were pasted into scenes, 0.16 billion parameters in all. **About "
    "photographs it mostly guesses.** It is there to look at methods; give `--model` for a model to rely on."
)
BUDGETS = "64,16"
CHOSEN = ("flowcut", "flowcut_plus")
MOST_RUNS = 12
"""At most so many answers to one question, so that nobody keeps the others waiting for long."""

AT_ONCE: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", "api_visibility": "private"}
LAST: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
"""For what a visitor does: by default Gradio drops what is done while the last answer is still being drawn. Of what
waits for the model the last counts, so that nobody fills the queue with clicks."""

SHOW_STEP = """(wanted) => {
  document.querySelectorAll("#overlay .step").forEach((step, number) => { step.hidden = number !== wanted; });
}"""
"""What the slider does, in the browser: all steps are there."""

STYLE = """
.problem { border-left: 4px solid #c2410c; padding: .4em .8em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3em .6em; border-bottom: 1px solid var(--border-color-primary); }
"""


@dataclass(frozen=True)
class Result:
    """What the lower half of the page shows, kept for one visitor.

    Attributes:
        answers: all answers.
        pixels: the picture as the model saw it.
    """

    answers: Answers
    pixels: list[Pixels]


def build_page(desk: Desk, model: str, mini: bool) -> gr.Blocks:
    """The page for one model.

    Args:
        desk: the model.
        model: what the page calls it.
        mini: whether it is flowcut-mini.
    """
    with gr.Blocks(title="FlowCut", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.Markdown(f"# FlowCut\nAsk **{model}** about a picture, with all of its visual tokens and with few of them.")
        if mini:
            gr.Markdown(MINI_NOTE)
        visual, result = gr.State(time_to_live=3600), gr.State(time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                sample = gr.Dropdown(
                    [(one.label(mini), number) for number, one in enumerate(SAMPLES)],
                    value=None,
                    label="A picture to try",
                    elem_id="sample",
                )
                upload = gr.File(
                    file_types=list(KINDS),
                    label=f"Or your own: a picture or a clip, up to {MEGABYTES} MB and {MEGAPIXELS} million pixels",
                    height=130,
                    elem_id="upload",
                )
                preview = gr.HTML(elem_id="preview")
            with gr.Column(scale=1, min_width=280):
                question = gr.Textbox(label="Question", placeholder="What is at the top?", max_length=500)
                methods = gr.Dropdown(
                    list(METHODS),
                    value=list(CHOSEN),
                    multiselect=True,
                    allow_custom_value=True,
                    label="Methods, with settings if you like: flowcut(history=0.7)",
                )
                budgets = gr.Textbox(label="Visual tokens, separated by commas", value=BUDGETS, max_length=40)
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
        problem = gr.HTML(elem_id="problem")
        table = gr.HTML(elem_id="answers")
        with gr.Column(visible=False) as below:
            shown = gr.Dropdown([], label="Method to look at", elem_id="shown")
            layer = gr.Slider(0, 1, 0, step=1, label="Way through the model, cut by cut", elem_id="layer")
            overlay = gr.HTML(elem_id="overlay")
            gr.Markdown("### What every method kept")
            grid = gr.HTML(elem_id="grid")
            make = gr.Button("Make the report on the flow in every layer", elem_id="make")
            report = gr.HTML(elem_id="report")

        def take_upload(path: str | None) -> tuple[Any, ...]:
            if path is None:
                return gr.skip(), gr.skip(), gr.skip(), gr.skip()
            try:
                taken = read_upload(path)
                desk.check(taken)
            except (FlowCutError, ValueError, OSError) as error:
                return None, "", problem_html(error), None
            return taken, preview_html(taken), "", None

        def take_sample(number: int | None) -> tuple[Any, ...]:
            if number is None:
                return gr.skip(), gr.skip(), gr.skip(), gr.skip()
            picture = SAMPLES[number].picture
            return picture, preview_html(picture), "", SAMPLES[number].text

        def answer(taken: Visual | None, asked: str, names: list[str], wanted: str) -> Iterator[tuple[Any, ...]]:
            try:
                if taken is None:
                    raise ValueError("There is no picture yet. Choose one, or send your own.")
                chosen = methods_of(names, wanted)
                yield None, "", '<p role="status">Answering …</p>', gr.skip(), gr.skip(), gr.skip()
                for now in desk.answers(taken, asked, chosen):
                    waiting = len(chosen) - len(now.cut)
                    yield gr.skip(), "", table_html(now, waiting), gr.skip(), gr.skip(), gr.skip()
                looked_at = [one for one in now.cut if one.image is not None]
                if not looked_at:
                    yield gr.skip(), "", table_html(now, 0), gr.Column(visible=False), gr.skip(), gr.skip()
                    return
                done = Result(now, seen(desk, now))
                choice = [name_of(one) for one in looked_at]
                chooser = gr.Dropdown(choice, value=choice[0])
                drawn = draw_grid(done.pixels, now)
                yield done, "", table_html(now, 0), gr.Column(visible=True), chooser, drawn
            except (FlowCutError, ValueError) as error:
                yield None, problem_html(error), "", gr.Column(visible=False), gr.skip(), gr.skip()

        def look_at(found: Result | None, name: str | None) -> tuple[Any, ...]:
            one = answered(found, name)
            if found is None or one is None or one.image is None:
                return gr.skip(), gr.skip(), gr.skip()
            steps = steps_of(one)
            last = len(steps) - 1
            slider = gr.Slider(0, max(last, 1), last, step=1, interactive=last > 0)
            return slider, draw_steps(found.pixels, one.image, steps), ""

        def write_report(found: Result | None, name: str | None) -> str:
            one = answered(found, name)
            if found is None or one is None or one.outcome is None:
                return ""
            try:
                return report_html(desk, found.answers, one.outcome.visual_tokens, model)
            except (FlowCutError, ValueError) as error:
                return problem_html(error)

        upload.upload(take_upload, upload, [visual, preview, problem, upload], **AT_ONCE)
        sample.input(take_sample, sample, [visual, preview, problem, question], **AT_ONCE)
        gr.on(
            [ask.click, question.submit],
            answer,
            [visual, question, methods, budgets],
            [result, problem, table, below, shown, grid],
            **LAST,
        ).then(look_at, [result, shown], [layer, overlay, report], api_visibility="private")
        shown.input(look_at, [result, shown], [layer, overlay, report], **LAST)
        make.click(write_report, [result, shown], report, **LAST)
        layer.input(None, layer, None, js=SHOW_STEP, api_visibility="private")
    page.queue(max_size=20, default_concurrency_limit=1, api_open=False)
    return page


def answered(found: Result | None, name: str | None) -> Answered | None:
    """The answer of that name."""
    rows = () if found is None else found.answers.cut
    return next((one for one in rows if name_of(one) == name), None)


def methods_of(names: list[str], wanted: str) -> list[Any]:
    """Every method at every budget.

    Raises:
        ValueError: there is none, there are too many, or one is not known.
    """
    try:
        budgets = list(dict.fromkeys(int(part) for part in wanted.split(",") if part.strip()))
    except ValueError:
        raise ValueError(f"Visual tokens are whole numbers, such as {BUDGETS}; got {wanted!r}.") from None
    if not names or not budgets:
        raise ValueError("Choose at least one method, and a number of visual tokens.")
    joined = ",".join(names)
    if len(read_expressions(joined, METHODS)) * len(budgets) > MOST_RUNS:
        raise ValueError(f"At most {MOST_RUNS} answers at once: choose fewer methods or fewer budgets.")
    return [method for budget in budgets for method in make_methods(joined, budget)]
