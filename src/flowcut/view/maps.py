"""Maps of a picture's patches: numbers in colours, or the patches that stay, one row for every frame or tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..inputs.clips import Clip
from ..measure.seeing import Sight
from ..trace import ImageFlow, TileFlow
from .filmstrip import seen_rows
from .overlay import Pixels, draw_panel

Numbers = NDArray[np.float64]

WIDTH = 3.5
"""Inches: a column of a paper."""
FONT = 7
"""Points, at that width."""
DPI = 200
ROWS = 8
"""Frames or tiles that are drawn; of more, some at equal distances."""
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000"
"""Colours of Okabe and Ito, which people tell apart whatever their eyes."""


def rows_of(flow: ImageFlow) -> int:
    """Frames or tiles of a picture or clip: those of the tower's batch, or the time steps of a packed video."""
    return len(flow.tiles) * (flow.tiles[0].grid[0] if len(flow.tiles[0].grid) == 3 else 1)


def in_rows(flow: ImageFlow, numbers: str) -> Numbers:
    """Numbers of every patch by frame or tile, ``[layers, rows, height, width]``.

    Args:
        numbers: an attribute of :class:`~flowcut.trace.TileFlow` of shape ``[L, N]``.
    """
    tiles = [getattr(tile, numbers).numpy() for tile in flow.tiles]
    height, width = flow.tiles[0].grid[-2:]
    return np.concatenate([tile.reshape(len(tile), -1, height, width) for tile in tiles], axis=1).astype(np.float64)


def by_unit(tile: TileFlow, numbers: Tensor) -> Tensor:
    """Means of numbers ``[L, N]`` over the patches of every unit, ``[L, U]``."""
    return numbers[:, tile.patches_of_unit].mean(dim=-1)


def pictures_of(sight: Sight, visual: Image.Image | Clip, processor: Any) -> list[Pixels]:
    """The frames or tiles as the model saw them, one for every row."""
    seen = seen_rows(sight.pixel_values, processor, visual, sight.trace)
    tiles = 1 if isinstance(visual, Clip) else len(sight.flow.tiles)
    return list(np.split(seen[0], tiles, axis=1)) if tiles > 1 else seen


def shown_rows(flow: ImageFlow) -> list[int]:
    """The frames or tiles that are drawn."""
    rows = rows_of(flow)
    return sorted({round(number) for number in np.linspace(0, rows - 1, min(rows, ROWS))})


def shown_layers(flow: ImageFlow, count: int = 5) -> list[int]:
    """Layers at equal distances, from the first to the last that the model reads."""
    last = min(flow.tiles[0].layers_read, flow.tiles[0].layers) - 1
    return sorted({round(number) for number in np.linspace(0, last, min(count, last + 1))})


def canvas(height: float) -> Figure:
    """A figure of a column's width; no global state of matplotlib is touched."""
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Any, across: str = "", up: str = "") -> None:
    """Axes with labels of a legible size and a light grid."""
    axes.tick_params(labelsize=FONT, length=2, pad=1.5)
    axes.set_xlabel(across, fontsize=FONT, labelpad=1.5)
    axes.set_ylabel(up, fontsize=FONT, labelpad=2)
    axes.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def block_height(pictures: Sequence[Pixels], rows: int, columns: int) -> float:
    """Inches that rows of maps need."""
    height, width = pictures[0].shape[:2]
    return float(rows * (WIDTH - 0.35) / columns * height / width + 0.25)


def draw_numbers(
    figure: Figure, spec: GridSpec, first: int, values: Numbers, layers: Sequence[int], rows: Sequence[int], name: str
) -> None:
    """Maps of ``values`` ``[layers, rows, height, width]``: a line for every row, a column for every layer, a scale.

    Args:
        first: the line of ``spec`` to begin with; the last column of ``spec`` is the scale's.
        name: of the numbers, with their unit.
    """
    shown = values[list(layers)][:, list(rows)]
    low, high = np.nanpercentile(shown, [1, 99])
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = beyond[bool(np.nanmin(shown) < low), bool(np.nanmax(shown) > high)]
    drawn: Any = None
    for line, row in enumerate(rows):
        for column, layer in enumerate(layers):
            axes = figure.add_subplot(spec[first + line, column])
            drawn = axes.imshow(values[layer, row], cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            label_map(axes, f"layer {layer}" if line == 0 else "", row if column == 0 and len(rows) > 1 else None)
    scale = figure.add_subplot(spec[first : first + len(rows), len(layers)])
    bar: Any = figure.colorbar(drawn, cax=scale, extend=extend)
    bar.set_label(name, fontsize=FONT, labelpad=2)
    bar.ax.tick_params(labelsize=FONT, length=2, pad=1)
    bar.formatter.set_powerlimits((-2, 3))
    bar.ax.yaxis.get_offset_text().set_fontsize(FONT - 1)


def label_map(axes: Any, title: str, row: int | None) -> None:
    """A title above a map, and the number of its frame or tile beside it."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=FONT, pad=2)
    if row is not None:
        axes.set_ylabel(str(row), fontsize=FONT, labelpad=1, rotation=0, ha="right", va="center")


def draw_kept(
    figure: Figure,
    spec: GridSpec,
    first: int,
    pictures: Sequence[Pixels],
    columns: Sequence[tuple[str, NDArray[np.bool_] | None]],
    rows: Sequence[int],
) -> None:
    """Pictures with the patches that stay: a line for every frame or tile, a column for every choice.

    Args:
        columns: a title and the marks ``[rows, height, width]``, or ``None`` for the picture as it is.
    """
    for line, row in enumerate(rows):
        for column, (title, kept) in enumerate(columns):
            axes = figure.add_subplot(spec[first + line, column])
            alive = None if kept is None else kept[row]
            draw_panel(axes, pictures[row], pictures[row].shape[:2] if alive is None else alive.shape, alive)
            axes.set_axis_on()
            label_map(axes, title if line == 0 else "", row if column == 0 and len(rows) > 1 else None)
