"""The flow in a picture or clip as one HTML file to look around in: no network, pictures and numbers inside."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..measure.compare import Comparison
from ..measure.seeing import Sight
from ..methods import Method
from ..methods.naming import describe
from ..trace import ImageFlow, ImageTrace
from .maps import by_unit, rows_of
from .overlay import Pixels

LARGEST_SIDE = 560
"""Pixels of a picture's longer side in the page."""
PICTURE_BYTES = 700_000
"""All pictures together."""
NUMBER_BYTES = 1_600_000
"""Numbers of patches, as text; of larger pictures, not every layer's are kept."""

QUANTITIES = {
    "relation_share": ("relation (share)", True),
    "semantic_share": ("semantic relevance (share)", True),
    "density": ("density", True),
    "score": ("score", False),
    "importance": ("importance", False),
    "redundancy": ("similarity with the others", False),
}
"""Attributes of a tile's flow, what the page calls them, and whether they are a side of the score."""


def report_data(
    sight: Sight, pictures: Sequence[Pixels], comparison: Comparison | None, model: str, name: str
) -> dict[str, Any]:
    """What the page shows, as plain numbers and texts.

    Numbers of patches are float32, little-endian, in base64, ``[numbered layers, units]``; ``left`` is the layer behind
    which each unit left, -1 where it stays; ``null`` in lists where a number is not defined.

    Args:
        sight: what was seen, and cut.
        pictures: see :func:`~flowcut.view.maps.pictures_of`.
        comparison: of methods at several budgets, if any.
        model, name: what the page calls model and picture.
    """
    flow, trace = sight.flow, sight.trace
    grid = (rows_of(flow), *trace.grid[-2:])
    numbers = {attribute: on_grid(flow, attribute) for attribute in QUANTITIES}
    layers = kept_layers(flow, sum(4 / 3 * 4 * one.shape[1] for one in numbers.values()))
    looked = None
    if flow.language is not None:
        looked = encoded(flow.looked_at.mean(dim=0))
    return {
        "model": model,
        "name": name,
        "question": sight.question,
        "method": described(sight.method),
        "global_token": flow.tiles[0].global_token,
        "unit": "patches" if flow.tiles[0].patches_of_unit.shape[1] == 1 else "groups of patches",
        "row_name": "tile" if flow.modality == "image" else "frame",
        "grid": list(grid),
        "pictures": data_urls(pictures),
        "layers": flow.tiles[0].layers,
        "layers_read": flow.tiles[0].layers_read,
        "numbered": layers,
        "quantities": [
            {"name": attribute, "label": label, "ranks": ranks, "values": encoded(numbers[attribute][layers])}
            for attribute, (label, ranks) in QUANTITIES.items()
        ],
        "looked": looked,
        "left": left_after(trace),
        "tokens_after_layer": list(trace.tokens_after_layer),
        "entropy": [listed(tile.entropy_ratio) for tile in flow.tiles],
        "similarity": [listed(tile.similarity) for tile in flow.tiles],
        "uncut": None if comparison is None else comparison.uncut.as_dict(),
        "compared": [] if comparison is None else compared(comparison),
    }


def on_grid(flow: ImageFlow, attribute: str) -> Tensor:
    """Numbers of all units of a picture in the order of its trace's grid, ``[layers, units]``."""
    tiles = []
    for tile in flow.tiles:
        values: Tensor = getattr(tile, attribute)
        # Importance is of units already.
        values = values if attribute == "importance" else by_unit(tile, values)
        tiles.append(values if flow.layout.pooled is None else values @ flow.layout.pooled.float().T)
    return torch.cat(tiles, dim=1)


def kept_layers(flow: ImageFlow, bytes_of_layer: float) -> list[int]:
    """The layers whose numbers are in the page: all, or of a large picture those that cut and some others."""
    every = list(range(flow.tiles[0].layers))
    most = max(1, int(NUMBER_BYTES / bytes_of_layer))
    if len(every) <= most:
        return every
    cutting = list(flow.tiles[0].cutting_layers)
    chosen = cutting if len(cutting) <= most else cutting[:: math.ceil(len(cutting) / most)]
    return chosen[:most] or every[:1]


def left_after(trace: ImageTrace) -> list[int]:
    """The layer behind which every unit left, -1 where it stays; behind the tower: its last layer."""
    alive = np.ones(trace.patches, dtype=bool)
    left = np.full(trace.patches, -1)
    last = max(0, trace.tiles[0].layers_run - 1)
    for layer, kept in [*sorted(trace.kept_after_layer.items()), (last, trace.kept)]:
        stays = np.zeros(trace.patches, dtype=bool)
        stays[kept.cpu().numpy()] = True
        left[alive & ~stays] = layer
        alive &= stays
    return [int(layer) for layer in left]


def compared(comparison: Comparison) -> list[dict[str, Any]]:
    """Every method at every budget."""
    return [
        {**row.as_dict(), "method": describe(row.method), "budget": budget_of(row.method)} for row in comparison.rows
    ]


def described(method: Method) -> str:
    """A method with its budget, in words."""
    return f"{method.name} at {budget_of(method)}"


def budget_of(method: Method) -> str:
    """A budget in words."""
    return (
        f"{method.target_num} tokens" if method.target_num is not None else f"{100 * (method.retain_ratio or 0):.0f}%"
    )


def listed(numbers: Tensor) -> list[float | None]:
    """Numbers as JSON has them."""
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def encoded(numbers: Tensor) -> str:
    """Numbers as base64 of float32."""
    return base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()


def data_urls(pictures: Sequence[Pixels]) -> list[str]:
    """Pictures as JPEG inside the page, smaller where there are many."""
    share = PICTURE_BYTES / len(pictures)
    return [data_url(picture, share) for picture in pictures]


def data_url(pixels: Pixels, most: float) -> str:
    """One picture, scaled down until it takes at most so many bytes."""
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    side = LARGEST_SIDE
    while True:
        scaled = picture.copy()
        scaled.thumbnail((side, side))
        written = io.BytesIO()
        scaled.save(written, "JPEG", quality=85)
        text = base64.b64encode(written.getvalue()).decode()
        if len(text) <= most or side <= 64:
            return f"data:image/jpeg;base64,{text}"
        side = side * 3 // 4


def report_page(data: dict[str, Any]) -> str:
    """The page of :func:`report_data`: HTML that asks for nothing else."""
    template = files(__package__).joinpath("templates", "flow_report.html").read_text(encoding="utf-8")
    # A text in the data must not end the script it stands in.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("@DATA@", text)


def save_flow_report(path: Path, data: dict[str, Any]) -> Path:
    """Write the page into a file.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(report_page(data), encoding="utf-8")
    return path
