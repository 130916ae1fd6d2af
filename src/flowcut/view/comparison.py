"""What several methods kept of the same picture, side by side."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from ..measure.compare import Comparison
from ..methods.naming import describe
from .overlay import Panel, Pixels, check_path, draw_panels, kept_grid

ANSWER_CHARACTERS = 24


def draw_comparison(pixels: Pixels, result: Comparison) -> Figure:
    """One panel for the input and one for every method, with what its last decoder layer still saw.

    Args:
        pixels: the image as the model saw it, ``[height, width, 3]`` in [0, 1].
        result: the comparison; methods that refused the model are left out.
    """
    names = Counter(row.method.name for row in result.rows)
    panels: list[Panel] = [(f"uncut: {shortened(result.uncut.answer)}", None)]
    for row in result.rows:
        if row.outcome is not None and row.kept is not None:
            name = row.method.name if names[row.method.name] == 1 else describe(row.method)
            title = f"{name} · {len(row.kept)}: {shortened(row.outcome.answer)}"
            panels.append((title, kept_grid(row.kept, row.grid)))
    return draw_panels(pixels, result.image.grid, panels, [result.question])


def shortened(answer: str, characters: int = ANSWER_CHARACTERS) -> str:
    """An answer that fits above a panel."""
    return textwrap.shorten(answer or "(no text)", characters, placeholder=" …")


def save_comparison(path: str | Path, pixels: Pixels, result: Comparison) -> None:
    """:func:`draw_comparison` into a file; its ending says which format.

    Raises:
        ValueError, FileNotFoundError: see :func:`check_path`.
    """
    check_path(path)
    draw_comparison(pixels, result).savefig(path)
