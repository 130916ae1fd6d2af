"""The overlay: what was cut where, drawn over the image as the model saw it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..trace import ImageTrace

if TYPE_CHECKING:
    pass

Pixels = NDArray[np.float32]
Panel = tuple[str, "NDArray[np.bool_] | None"]
"""A title, and ``[height, width]`` of the patch grid, true where a patch is left; ``None`` where nothing is cut."""

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
MAX_COLUMNS = 6
DIMMED = 0.22
"""Brightness left to a cut patch."""
PANEL_INCHES = 2.3
"""Longer side of a panel."""
GAP_INCHES = 0.14
TITLE_INCHES = 0.27
LINE_INCHES = 0.2
CHARACTER_INCHES = 0.08
MARGIN_INCHES = 0.18
MIN_WIDTH_INCHES = 5.2
HEADER_LINES = 4
PATCH_PIXELS = 28
"""Side of a merge group in pictures of flattened patches."""
OUTLINE = "#ffc857"
INK = "#20242c"


def restore_pixels(pixel_values: Tensor, image_processor: Any) -> Pixels:
    """Undo the processor's normalisation.

    Args:
        pixel_values: one image as the tower gets it, ``[3, height, width]``, or its tiles,
            ``[tiles, 3, height, width]``.
        image_processor: has ``image_mean`` and ``image_std``, and ``do_normalize`` if that is optional.

    Returns:
        ``[height, width, 3]`` in [0, 1]; tiles stand side by side.
    """
    tiles = pixel_values.detach().float().cpu().reshape(-1, *pixel_values.shape[-3:])
    pixels = np.concatenate(list(tiles.permute(0, 2, 3, 1).numpy()), axis=1)
    if getattr(image_processor, "do_normalize", True):
        pixels = pixels * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    restored: Pixels = np.clip(pixels, 0.0, 1.0).astype(np.float32)
    return restored


def seen_pixels(pixel_values: Tensor, image_processor: Any, image: Image.Image, trace: ImageTrace) -> Pixels:
    """The first image of a batch as the model saw it.

    Args:
        pixel_values: what the processor made of the batch: ``[images, 3, height, width]``,
            ``[images, tiles, 3, height, width]``, or rows of flattened patches (Qwen2-VL), which show the whole
            image, only scaled.
        image_processor: the processor's.
        image: the picture itself.
        trace: what happened to it.

    Returns:
        ``[height, width, 3]`` in [0, 1].
    """
    if pixel_values.dim() == 2:
        height, width = trace.grid[-2:]
        scaled = image.convert("RGB").resize((width * PATCH_PIXELS, height * PATCH_PIXELS))
        return np.asarray(scaled, dtype=np.float32) / np.float32(255.0)
    first = pixel_values[0]
    return restore_pixels(first if first.dim() == 3 else first[: len(trace.tiles)], image_processor)


def kept_grid(kept: Tensor, grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """``[height, width]`` of the patch grid, true where a patch is kept; tiles stand side by side."""
    return np.concatenate(list(kept_rows(kept, grid)), axis=1)


def kept_rows(kept: Sequence[int] | Tensor, grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """``[tiles or frames, height, width]`` of the patch grid, true where a patch is kept."""
    alive = np.zeros(math.prod(grid), dtype=bool)
    alive[np.asarray(kept.cpu() if isinstance(kept, Tensor) else kept, dtype=int)] = True
    return alive.reshape(-1, *grid[-2:])


def dim_cut(pixels: Pixels, alive: NDArray[np.bool_]) -> Pixels:
    """Darken the cut patches and take most of their colour; kept ones stay as they are.

    Args:
        pixels: ``[height, width, 3]`` in [0, 1].
        alive: ``[rows, columns]`` of the patch grid, which covers the image evenly.
    """
    height, width = pixels.shape[:2]
    rows = np.arange(height) * alive.shape[0] // height
    columns = np.arange(width) * alive.shape[1] // width
    mask = alive[rows][:, columns][..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    return np.where(mask, pixels, DIMMED * (0.3 * pixels + 0.7 * grey)).astype(np.float32)


def outlines(alive: NDArray[np.bool_]) -> list[list[tuple[float, float]]]:
    """The borders between kept and cut patches, as line segments ``[(x, y), (x, y)]`` in patch units."""
    padded = np.pad(alive, 1)
    across = padded[:, 1:] != padded[:, :-1]
    down = padded[1:] != padded[:-1]
    vertical = [[(x, y - 1), (x, y)] for y, x in np.argwhere(across)]
    horizontal = [[(x - 1, y), (x, y)] for y, x in np.argwhere(down)]
    return [[(float(x), float(y)) for x, y in segment] for segment in vertical + horizontal]


def draw_cuts(pixels: Pixels, trace: ImageTrace, header: Sequence[str] = ()) -> Figure:
    """One panel for the input and one for every layer that cut.

    Args:
        pixels: the image as the model saw it, ``[height, width, 3]`` in [0, 1].
        trace: what happened to it.
        header: texts above the panels, such as the question and the answers; the first stands out.

    Returns:
        A figure of its own; no global state of matplotlib is touched.
    """
    panels: list[Panel] = [(f"input · {trace.patches} patches", None)]
    for layer, kept in sorted(trace.kept_after_layer.items()):
        panels.append((f"layer {layer} · {len(kept)} of {trace.patches} patches", kept_grid(kept, trace.grid)))
    return draw_panels(pixels, trace.grid, panels, header)


def draw_panels(
    pictures: Pixels | Sequence[Pixels], grid: tuple[int, ...], panels: Sequence[Panel], header: Sequence[str] = ()
) -> Figure:
    """The same image several times, each with other patches left, or images of one size.

    Args:
        pictures: the image as the model saw it, ``[height, width, 3]`` in [0, 1], or one for every panel.
        grid: (height, width) of its patches, or (tiles, height, width).
        panels: a title and the patches that are left, or ``None`` for the image as it is.
        header: see :func:`draw_cuts`.
    """
    shown = [pictures] * len(panels) if isinstance(pictures, np.ndarray) else pictures
    pixels = shown[0]
    rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / rows)
    scale = PANEL_INCHES / max(pixels.shape[:2])
    panel_height, panel_width = pixels.shape[0] * scale, max(pixels.shape[1] * scale, 1.7)
    row_width = columns * panel_width + (columns - 1) * GAP_INCHES
    width = max(MIN_WIDTH_INCHES, row_width + 2 * MARGIN_INCHES)
    lines = [line for text in header for line in wrapped(text, width - 2 * MARGIN_INCHES)]
    header_height = LINE_INCHES * len(lines) + (0.1 if lines else 0.0)
    row_height = panel_height + TITLE_INCHES + GAP_INCHES
    height = header_height + rows * row_height + MARGIN_INCHES

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    top = height - MARGIN_INCHES
    first = len(wrapped(header[0], width - 2 * MARGIN_INCHES)) if header else 0
    for number, line in enumerate(lines):
        weight = "bold" if number < first else "normal"
        figure.text(
            MARGIN_INCHES / width,
            (top - LINE_INCHES * number) / height,
            line,
            fontsize=10,
            weight=weight,
            color=INK,
            va="top",
            parse_math=False,
        )
    left = (width - row_width) / 2 if not lines else MARGIN_INCHES
    for number, (title, alive) in enumerate(panels):
        row, column = divmod(number, columns)
        bottom = height - header_height - row * row_height - TITLE_INCHES - panel_height - MARGIN_INCHES / 2
        x = left + column * (panel_width + GAP_INCHES)
        axes = figure.add_axes((x / width, bottom / height, panel_width / width, panel_height / height), label=title)
        shape = (grid[-2], math.prod(grid) // grid[-2]) if alive is None else alive.shape
        draw_panel(axes, shown[number], shape, alive)
        axes.set_title(title, fontsize=8, color=INK, pad=4)
    return figure


def draw_panel(axes: Any, pixels: Pixels, grid: tuple[int, int], alive: NDArray[np.bool_] | None) -> None:
    """Draw the image into ``axes``, in patch units; with ``alive`` the cut patches are dimmed."""
    shown = pixels if alive is None else dim_cut(pixels, alive)
    # The grid stretched over the pixels keeps their aspect: patches are drawn as wide and high as they were.
    aspect = (pixels.shape[0] / grid[0]) / (pixels.shape[1] / grid[1])
    axes.imshow(shown, extent=(0, grid[1], grid[0], 0), aspect=aspect, interpolation="nearest", vmin=0, vmax=1)
    if alive is not None:
        axes.add_collection(LineCollection(outlines(alive), colors=OUTLINE, linewidths=0.55, capstyle="projecting"))
    axes.set_axis_off()


def wrapped(text: str, inches: float) -> list[str]:
    """``text`` in lines that fit into ``inches``, the last one shortened where there are too many."""
    columns = int(inches / CHARACTER_INCHES)
    return textwrap.wrap(text, columns, max_lines=HEADER_LINES, placeholder=" …") or [""]


def save_cuts(path: str | Path, pixels: Pixels, trace: ImageTrace, header: Sequence[str] = ()) -> None:
    """Draw the overlay of one image into a file.

    Args:
        path: the file; its ending says which format.
        pixels: the image as the model saw it, see :func:`seen_pixels`.
        trace: what happened to the image.
        header: texts above the panels.

    Raises:
        ValueError, FileNotFoundError: see :func:`check_path`.
    """
    check_path(path)
    draw_cuts(pixels, trace, header).savefig(path)


def check_path(path: str | Path) -> None:
    """Make sure that a picture can be written to ``path``.

    Raises:
        ValueError: the ending names no format of a picture.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"The picture {str(path)!r} must end in one of {', '.join(FORMATS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} for the picture does not exist.")
