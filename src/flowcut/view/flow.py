"""The figures of FlowCut's paper for one picture or clip: how information flows, and what is cut by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..measure.seeing import Sight
from ..trace import TileFlow
from .maps import (
    BLACK,
    BLUE,
    FONT,
    GREEN,
    ORANGE,
    RED,
    Numbers,
    block_height,
    by_unit,
    canvas,
    draw_kept,
    draw_numbers,
    in_rows,
    plain,
    shown_layers,
    shown_rows,
)
from .overlay import Pixels, kept_rows

CURVES = 1.45
"""Inches of a panel with curves."""
BAR = 0.12
"""Width of a scale, in those of a map."""


def draw_relay(sight: Sight, pictures: Sequence[Pixels]) -> Figure:
    """Attention from the global token and to it, by layer."""
    flow = sight.flow
    name = flow.tiles[0].global_token
    layers, rows = shown_layers(flow), shown_rows(flow)
    received = flow.tiles[0].to_global is not None
    figure, spec = maps_and_curves(pictures, (2 if received else 1) * len(rows), len(layers), 1)
    draw_numbers(figure, spec, 0, 100 * in_rows(flow, "relation"), layers, rows, f"from {name}, %")
    axes = figure.add_subplot(spec[-1, :])
    given = 100 * np.stack([np.nansum(tile.relation.numpy(), axis=1) for tile in flow.tiles])
    draw_band(axes, given.T, BLUE, "o", f"{name} to all patches")
    if received:
        paid = 100 * in_rows(flow, "to_global")
        draw_numbers(figure, spec, len(rows), paid, layers, rows, f"to {name}, %")
        draw_band(axes, paid, ORANGE, "s", f"a patch to {name}, 5 to 95% of them")
    axes.set_ylim(0, None)
    finish_curves(axes, flow.tiles[0], "attention, %")
    return figure


def draw_redundancy(sight: Sight, pictures: Sequence[Pixels]) -> Figure:
    """How much patches are like each other, and how concentrated the attention is, by layer."""
    flow = sight.flow
    layers, rows = shown_layers(flow), shown_rows(flow)
    figure, spec = maps_and_curves(pictures, len(rows), len(layers), 1)
    similar = in_rows(flow, "redundancy")
    draw_numbers(figure, spec, 0, similar, layers, rows, "mean cosine")
    axes = figure.add_subplot(spec[-1, :])
    draw_band(axes, similar, BLUE, "o", "cosine similarity of patches")
    entropy = np.stack([tile.entropy_ratio.numpy() for tile in flow.tiles])
    draw_band(axes, entropy.T, RED, "s", f"entropy from {flow.tiles[0].global_token}, H / ln N")
    axes.set_ylim(min(0.0, float(np.nanmin(similar))), 1.05)
    finish_curves(axes, flow.tiles[0], "similarity, entropy")
    return figure


def draw_disagreement(sight: Sight, pictures: Sequence[Pixels]) -> Figure:
    """What single layers would keep, and how much two of them agree."""
    flow = sight.flow
    layers, rows = shown_layers(flow, 4), shown_rows(flow)
    read = min(flow.tiles[0].layers_read, flow.tiles[0].layers)
    relation = torch.cat([by_unit(tile, tile.relation_share)[:read] for tile in flow.tiles], dim=1)
    relation = relation.nan_to_num(nan=-1.0)
    count = kept_of_units(sight)
    best = relation.topk(count, dim=1).indices
    chosen = torch.zeros_like(relation).scatter(1, best, 1.0)
    agreement = 100 * (chosen @ chosen.T) / count
    figure, spec = maps_and_curves(pictures, len(rows), len(layers), 1, curves=2.3)
    grid = (len(flow.tiles), *flow.tiles[0].unit_grid)
    columns = [(f"layer {layer}", kept_rows(best[layer], grid)) for layer in layers]
    draw_kept(figure, spec, 0, pictures, columns, rows)
    axes = figure.add_subplot(spec[-1, :-1])
    drawn = axes.imshow(agreement.numpy(), cmap="cividis", vmin=0, vmax=100, origin="lower", interpolation="nearest")
    plain(axes, "vision layer", "vision layer")
    axes.grid(visible=False)
    whole_numbers(axes)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=FONT, length=2, pad=1)
    bar.set_label(f"of the {count} best in both layers, %", fontsize=FONT, labelpad=2)
    least = int(agreement.argmin())
    lower = (relation.argsort(dim=1, descending=True).argsort(dim=1) >= relation.shape[1] / 2).float()
    one, other = divmod(least, read)
    below = int((chosen[one] * lower[other]).sum())
    axes.set_title(
        f"chance: {100 * count / relation.shape[1]:.0f}%. Of the {count} best of layer {one},\n"
        f"layer {other} has {below} in its lower half",
        fontsize=FONT,
        pad=3,
    )
    return figure


def draw_schedule(sight: Sight, pictures: Sequence[Pixels]) -> Figure:
    """How many tokens are left after every layer, and the entropy that decides it."""
    flow, trace = sight.flow, sight.trace
    rows = shown_rows(flow)
    cuts = sorted(trace.kept_after_layer.items())
    wanted = sorted({round(number) for number in np.linspace(0, len(cuts) - 1, min(3, len(cuts)))})
    columns: list[tuple[str, Any]] = [("uncut", None)]
    columns += [(f"after layer {cuts[number][0]}", kept_rows(cuts[number][1], trace.grid)) for number in wanted]
    figure, spec = maps_and_curves(pictures, len(rows), len(columns), 2, curves=1.25)
    draw_kept(figure, spec, 0, pictures, columns, rows)
    prefix = sum(tile.tokens_into_layer[0] - tile.tokens_embedded for tile in trace.tiles if tile.tokens_into_layer)
    after = np.array(trace.tokens_after_layer) - prefix
    into = np.array([trace.tokens_into_layer[0] - prefix, *after[:-1]])
    layers = np.arange(len(after))
    axes = figure.add_subplot(spec[-2, :])
    axes.step(layers, after, where="mid", color=BLUE, linewidth=1, label="patches left")
    axes.bar(layers, into - after, color=ORANGE, width=0.6, label="patches cut")
    axes.set_ylim(0, None)
    finish_curves(axes, flow.tiles[0], "patches", across="")
    axes.tick_params(labelbottom=False)
    below = figure.add_subplot(spec[-1, :], sharex=axes)
    entropy = np.stack([tile.entropy_ratio.numpy() for tile in flow.tiles])
    draw_band(below, entropy.T, RED, "s", "all patches, uncut")
    planned = planned_ratios(sight)
    if planned:
        below.plot(*zip(*planned, strict=True), color=BLACK, marker="x", markersize=3, linewidth=0, label="those left")
    below.set_ylim(None, 1.02)
    finish_curves(below, flow.tiles[0], "H / ln N")
    return figure


def draw_criteria(sight: Sight, pictures: Sequence[Pixels]) -> Figure:
    """What each criterion alone would keep at the layer of the last cut, and what FlowCut keeps."""
    flow, trace = sight.flow, sight.trace
    rows = shown_rows(flow)
    layer = max(flow.tiles[0].cutting_layers)
    count = kept_of_units(sight)
    grid = (len(flow.tiles), *flow.tiles[0].unit_grid)

    def best(numbers: list[Tensor]) -> Any:
        flat = torch.cat(numbers).nan_to_num(nan=-1.0)
        return kept_rows(flat.topk(count).indices, grid)

    tiles = flow.tiles
    columns: list[tuple[str, Any]] = [
        ("relation", best([by_unit(tile, tile.relation_share)[layer] for tile in tiles])),
        ("semantic", best([by_unit(tile, tile.semantic_share)[layer] for tile in tiles])),
        ("density", best([by_unit(tile, tile.density)[layer] for tile in tiles])),
        ("score", best([by_unit(tile, tile.score)[layer] for tile in tiles])),
        ("cumulative", best([tile.importance[layer] for tile in tiles])),
        ("FlowCut", kept_rows(trace.kept, trace.grid)),
    ]
    across = 3 if len(rows) == 1 else len(columns)
    lines = len(columns) // across
    figure = canvas(block_height(pictures, lines * len(rows), across) + 0.2 * lines)
    spec = figure.add_gridspec(lines * len(rows), across)
    for line in range(lines):
        draw_kept(figure, spec, line * len(rows), pictures, columns[line * across : (line + 1) * across], rows)
    figure.suptitle(f"the {count} best of layer {layer} by each criterion, and what FlowCut keeps", fontsize=FONT)
    return figure


FIGURES: dict[str, Callable[[Sight, Sequence[Pixels]], Figure]] = {
    "1-relay": draw_relay,
    "2-redundancy": draw_redundancy,
    "3-disagreement": draw_disagreement,
    "4-schedule": draw_schedule,
    "5-criteria": draw_criteria,
}
"""The figures, by the number they have in the paper and what they show."""


def save_figures(folder: Path, sight: Sight, pictures: Sequence[Pixels]) -> list[Path]:
    """Draw all of :data:`FIGURES` into ``folder``, as PNG and SVG; returns the paths.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        figure = draw(sight, pictures)
        for ending in ("png", "svg"):
            paths.append(folder / f"flow-{name}.{ending}")
            figure.savefig(paths[-1])
    return paths


def maps_and_curves(
    pictures: Sequence[Pixels], lines: int, columns: int, panels: int, curves: float = CURVES
) -> tuple[Figure, Any]:
    """A figure with lines of maps above panels with curves, and its grid; the last column is for scales."""
    maps = block_height(pictures, lines, columns)
    figure = canvas(maps + 0.15 + curves * panels)
    heights = [*[maps / lines] * lines, *[curves] * panels]
    return figure, figure.add_gridspec(
        lines + panels, columns + 1, width_ratios=[*[1.0] * columns, BAR], height_ratios=heights
    )


def draw_band(axes: Any, values: Numbers, color: str, marker: str, label: str) -> None:
    """The median of ``values`` ``[layers, ...]`` by layer, and where nine tenths of them lie."""
    flat = values.reshape(len(values), -1)
    low, middle, high = np.nanpercentile(flat, [5, 50, 95], axis=1)
    layers = np.arange(len(flat))
    axes.fill_between(layers, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(layers, middle, color=color, marker=marker, markersize=2.5, linewidth=1, label=label)


def finish_curves(axes: Any, tile: TileFlow, up: str, across: str = "vision layer") -> None:
    """The names of the axes, a legend, and a line behind the last layer that the model reads, where it runs others."""
    whole_numbers(axes)
    if tile.layers_read < tile.layers:
        axes.axvline(tile.layers_read - 0.5, color=GREEN, linewidth=0.8, linestyle=":", label="not read behind")
    plain(axes, across, up)
    legend(axes)


def whole_numbers(axes: Any) -> None:
    """Ticks at whole layers alone."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(axes: Any) -> None:
    """A legend above the axes, so that it hides no curve."""
    axes.legend(
        fontsize=FONT - 1,
        frameon=False,
        handlelength=1.3,
        borderpad=0.1,
        labelspacing=0.25,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        columnspacing=1.0,
    )


def kept_of_units(sight: Sight) -> int:
    """Units that stay: as many as every choice keeps."""
    return len(sight.trace.kept)


def planned_ratios(sight: Sight) -> list[tuple[int, float]]:
    """Layer and entropy ratio over the patches left, at every planned cut of every tile."""
    method = sight.method
    plans = sight.flow.planned(method.target_num, retain_ratio=method.retain_ratio)
    return [(cut.layer, cut.entropy_ratio) for plan in plans for cut in plan]
