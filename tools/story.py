"""The first picture of the README: what is left of a scene, what it costs, and how many questions are answered rightly.

    python tools/story.py docs/story.png

Kept patches and times come from flowcut-mini on the scene of ``flowcut demo`` (medians of nine runs in turns, where
the picture is drawn); shares of right answers from the stored rows of ``docs/measured/plus``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measured import row_of

from flowcut.checkpoints.loading import load_model
from flowcut.measure.compare import Comparison, compare
from flowcut.methods import make_methods
from flowcut.tasks.demo import demo_scene
from flowcut.view.overlay import INK, Pixels, draw_panel, kept_grid, seen_pixels

TOKENS = 64
NAMES = {"uncut": "uncut", "flowcut": "FlowCut (the paper's)", "flowcut_plus": "FlowCut+ (ours)"}
QUIET = "#5b6270"


def told_of(name: str, result: Comparison) -> tuple[str, str, str]:
    """Tokens, time and right answers of one panel."""
    outcomes = {row.method.name: row.outcome for row in result.rows}
    outcome = result.uncut if name == "uncut" else outcomes[name]
    assert outcome is not None
    seconds = outcome.seconds.tower + outcome.seconds.rest + outcome.seconds.prefill
    whole = result.uncut.seconds.tower + result.uncut.seconds.rest + result.uncut.seconds.prefill
    faster = "" if name == "uncut" else f", {whole / seconds:.1f} times as fast"
    row = row_of("plus") if name == "uncut" else row_of("plus", name, TOKENS, "original")
    return (
        f"{outcome.visual_tokens} visual tokens",
        f"first token after {seconds:.2f} s{faster}",
        f"{100 * row.average:.0f}% of 1,800 questions right",
    )


def draw_story(pixels: Pixels, result: Comparison) -> Figure:
    """Three panels side by side."""
    kept = {row.method.name: kept_grid(row.kept, row.grid) for row in result.rows if row.kept is not None}
    figure = Figure(figsize=(8.4, 3.75), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    for number, (name, title) in enumerate(NAMES.items()):
        left = (0.18 + number * 2.73) / 8.4
        axes = figure.add_axes((left, 0.86 / 3.75, 2.6 / 8.4, 2.6 / 3.75), label=name)
        draw_panel(axes, pixels, (24, 24), kept.get(name))
        axes.set_title(title, fontsize=10.5, weight="bold", color=INK, pad=5)
        tokens, seconds, right = told_of(name, result)
        for line, (text, weight, colour) in enumerate(
            ((right, "bold", INK), (tokens, "normal", INK), (seconds, "normal", QUIET))
        ):
            place = (left, (0.64 - 0.22 * line) / 3.75)
            figure.text(*place, text, fontsize=9, weight=weight, color=colour)
    return figure


def main(path: Path) -> None:
    """Ask, and draw."""
    scene, question = demo_scene()
    loaded = load_model("flowcut-mini", "cpu", "float32")
    methods = make_methods("flowcut(positions=original),flowcut_plus", TOKENS)
    result = compare(loaded, methods, scene.picture(), question.text, max_new_tokens=8, repeats=9)
    pixels = seen_pixels(result.pixel_values, loaded.processor.image_processor, scene.picture(), result.image)
    draw_story(pixels, result).savefig(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
