"""The overlay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from flowcut import ImageTrace
from flowcut.models.base import ImageLayout
from flowcut.trace import TileTrace
from flowcut.view.overlay import (
    MAX_COLUMNS,
    check_path,
    dim_cut,
    draw_cuts,
    kept_grid,
    outlines,
    restore_pixels,
    save_cuts,
    seen_pixels,
)


def make_trace(grid: tuple[int, int] = (4, 6), layers: tuple[int, ...] = (1, 3)) -> ImageTrace:
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(0)
    kept, kept_after_layer = torch.arange(patches), {}
    for layer in layers:
        chosen = torch.randperm(len(kept), generator=generator)[: len(kept) - 1].sort().values
        kept = kept[chosen]
        kept_after_layer[layer] = kept
    tile = TileTrace(
        kept=kept,
        patches=patches,
        tokens_after_layer=[len(kept) + 1],
        layers_run=1,
        kept_after_layer=kept_after_layer,
    )
    tokens = torch.arange(patches)
    return ImageTrace(
        tiles=(tile,),
        layout=ImageLayout(1, grid, tokens, complete=True),
        placeholder_kept=torch.isin(tokens, kept),
        visual_tokens=len(kept),
        target=len(kept),
    )


def bright(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.4, 1.0, (height, width, 3)).astype(np.float32)


def panels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_normalisation_is_undone() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (84, 84, 3), dtype=np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84})
    values: Tensor = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert np.abs(restore_pixels(values, processor) - pixels / 255).max() < 1e-5


def test_pixels_that_were_not_normalised_stay() -> None:
    processor = CLIPImageProcessor(do_normalize=False)
    values = torch.rand(3, 5, 7)
    assert np.allclose(restore_pixels(values, processor), values.permute(1, 2, 0).numpy())


def test_cut_patches_are_dimmed_and_kept_ones_untouched() -> None:
    pixels, alive = bright(40, 60), kept_grid(torch.tensor([0, 7, 23]), (4, 6))
    shown = dim_cut(pixels, alive)
    for row in range(4):
        for column in range(6):
            patch = np.s_[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
            if row * 6 + column in (0, 7, 23):
                assert np.array_equal(shown[patch], pixels[patch])
            else:
                assert shown[patch].max() < pixels[patch].min() - 0.1


def test_grid_that_does_not_divide_the_image() -> None:
    pixels, alive = bright(10, 11), np.zeros((3, 4), dtype=bool)
    assert dim_cut(pixels, alive).max() < 0.4
    assert np.array_equal(dim_cut(pixels, ~alive), pixels)


def test_outlines_run_between_kept_and_cut() -> None:
    alone = outlines(kept_grid(torch.tensor([4]), (3, 3)))
    corners = {(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0)}
    assert len(alone) == 4 and {point for segment in alone for point in segment} == corners
    pair = outlines(kept_grid(torch.tensor([3, 4]), (3, 3)))
    assert len(pair) == 6
    assert [(1.0, 1.0), (1.0, 2.0)] not in pair


def test_one_panel_for_the_input_and_one_for_every_cut() -> None:
    trace, pixels = make_trace(), bright(56, 84)
    figure = draw_cuts(pixels, trace)
    assert [axes.get_title() for axes in figure.axes] == [
        "input · 24 patches",
        "layer 1 · 23 of 24 patches",
        "layer 3 · 22 of 24 patches",
    ]
    first, *others = panels(figure)
    assert np.array_equal(first, pixels)
    for shown, kept in zip(others, trace.kept_after_layer.values(), strict=True):
        assert np.array_equal(shown, dim_cut(pixels, kept_grid(kept, trace.grid)))
    outlined = [any(isinstance(part, LineCollection) for part in axes.collections) for axes in figure.axes]
    assert outlined == [False, True, True]


@pytest.mark.parametrize("size", [(56, 84), (84, 56), (28, 140), (140, 28)])
@pytest.mark.parametrize("cuts", [0, 1, 5, 6, 11])
def test_panels_have_one_size_and_do_not_touch(size: tuple[int, int], cuts: int) -> None:
    trace = make_trace((size[0] // 14, size[1] // 14), tuple(range(min(cuts, size[0] * size[1] // 196 - 1))))
    figure = draw_cuts(bright(*size), trace, ["A question?", "An answer"])
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == len(trace.kept_after_layer) + 1
    assert len({(round(box.width, 6), round(box.height, 6)) for box in boxes}) == 1
    assert max(sum(abs(box.y0 - other.y0) < 1e-6 for box in boxes) for other in boxes) <= MAX_COLUMNS
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0 and box.y1 <= 1
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_header_stands_above_the_panels_and_is_not_read_as_mathematics() -> None:
    question = "Is $a_1 more than $b?"
    figure = draw_cuts(bright(56, 84), make_trace(), [question, "yes " * 400])
    figure.canvas.draw()
    lines = figure.texts
    assert lines[0].get_text() == question and lines[-1].get_text().endswith("…")
    highest = max(axes.title.get_window_extent().y1 for axes in figure.axes)
    for line in lines:
        extent = line.get_window_extent()
        assert extent.y0 >= highest and extent.x1 <= figure.bbox.x1


def test_saved_picture_shows_the_cut(tmp_path: Path) -> None:
    processor = CLIPImageProcessor()
    white = (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    values = white[:, None, None].expand(3, 56, 84)
    trace = make_trace(layers=tuple(range(20)))
    path = tmp_path / "overlay.png"
    save_cuts(path, restore_pixels(values, processor), trace)
    shown = np.asarray(Image.open(path).convert("L"))
    figure = draw_cuts(restore_pixels(values, processor), trace)
    for axes, kept in zip(figure.axes[1:], trace.kept_after_layer.values(), strict=True):
        box, alive = axes.get_position(), kept_grid(kept, trace.grid)
        for row, column in np.ndindex(*alive.shape):
            x = box.x0 + (column + 0.5) / alive.shape[1] * box.width
            y = 1 - box.y1 + (row + 0.5) / alive.shape[0] * box.height
            level = shown[int(y * shown.shape[0]), int(x * shown.shape[1])]
            assert level > 250 if alive[row, column] else level < 100


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in one of \.png"):
        check_path(tmp_path / "overlay.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_path(tmp_path / "nowhere" / "overlay.png")
    check_path(tmp_path / "overlay.PNG")


def test_tiles_stand_side_by_side() -> None:
    values = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6) / 200
    processor = CLIPImageProcessor(do_normalize=False)
    pixels = restore_pixels(values, processor)
    assert pixels.shape == (4, 12, 3)
    assert pixels[1, 8].tolist() == values[1, :, 1, 2].tolist()
    alive = kept_grid(torch.tensor([1, 6]), (2, 2, 3))
    assert alive.astype(int).tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_pixels_as_the_model_saw_them() -> None:
    processor = CLIPImageProcessor(do_normalize=False)
    picture = Image.new("RGB", (90, 60), (255, 0, 0))
    trace = make_trace()
    tiled = torch.rand(1, 3, 3, 56, 84)
    assert np.allclose(seen_pixels(tiled, processor, picture, trace), restore_pixels(tiled[0, :1], processor))
    assert seen_pixels(tiled[0], processor, picture, trace).shape == (56, 84, 3)
    flattened = seen_pixels(torch.rand(24, 1176), processor, picture, trace)
    assert flattened.shape == (4 * 28, 6 * 28, 3) and flattened[0, 0].tolist() == [1.0, 0.0, 0.0]
