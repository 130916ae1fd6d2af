"""The paper's figures for a picture and a clip: drawn for tiny models, with the numbers that were seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import tiny_checkpoint
import tiny_video
import torch
import zoo
from PIL import Image

from flowcut import attach, observe
from flowcut.checkpoints.loading import LoadedModel
from flowcut.inputs.clips import Clip
from flowcut.measure.compare import compare
from flowcut.measure.seeing import Sight, see
from flowcut.methods import FlowCut, make_methods
from flowcut.view.flow import FIGURES, draw_criteria, draw_redundancy, draw_schedule
from flowcut.view.flow_report import report_data
from flowcut.view.maps import in_rows, pictures_of, rows_of, shown_layers, shown_rows
from flowcut.view.overlay import kept_rows

METHOD = FlowCut(retain_ratio=0.3)


def loaded_llava() -> LoadedModel:
    model: Any = tiny.tiny_model()
    return LoadedModel(model, tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(count: int = 2) -> Clip:
    from transformers.video_utils import VideoMetadata

    frames = np.random.default_rng(1).integers(0, 255, (count, 60, 80, 3), dtype=np.uint8)
    metadata = VideoMetadata(total_num_frames=count, fps=2.0, duration=count / 2, frames_indices=list(range(count)))
    return Clip(frames, metadata)


def loaded_video(name: str) -> LoadedModel:
    return LoadedModel(tiny_video.tiny_model(name), tiny_video.tiny_processor(name), torch.device("cpu"), torch.float32)


def curve(axes: Any, label: str) -> Any:
    return next(line for line in axes.get_lines() if label in line.get_label())


def test_figures_of_a_picture_show_what_was_seen() -> None:
    loaded, shown = loaded_llava(), picture()
    sight = see(loaded, shown, METHOD)
    pictures = pictures_of(sight, shown, loaded.processor)
    assert [one.shape for one in pictures] == [(84, 84, 3)]
    tile = sight.flow.tiles[0]
    curves = draw_redundancy(sight, pictures).axes[-1]
    np.testing.assert_allclose(curve(curves, "entropy").get_ydata(), tile.entropy_ratio)
    schedule = draw_schedule(sight, pictures)
    left = next(axes for axes in schedule.axes if axes.get_ylabel() == "patches")
    patches_left = [count - 1 for count in sight.trace.tokens_after_layer]  # without CLS
    assert curve(left, "left").get_ydata().tolist() == patches_left
    assert sum(bar.get_height() for bar in left.patches) == tile.patches - patches_left[-1]
    titles = [axes.get_title() for axes in draw_criteria(sight, pictures).axes]
    assert titles == ["relation", "semantic", "density", "score", "cumulative", "FlowCut"]


@pytest.mark.parametrize(("name", "frames"), [("video_llava", 2), ("llava_onevision", 2), ("qwen2_vl", 4)])
def test_frames_of_a_clip_are_rows(name: str, frames: int) -> None:
    rows = 2  # Qwen's towers take two frames as one
    loaded, shown = loaded_video(name), clip(frames)
    sight = see(loaded, shown, METHOD, to_global=False)
    pictures = pictures_of(sight, shown, loaded.processor)
    assert rows_of(sight.flow) == len(pictures) == rows
    assert in_rows(sight.flow, "score").shape[:2] == (sight.flow.tiles[0].layers, rows)
    drawn = draw_criteria(sight, pictures)
    assert len(drawn.axes) == 6 * rows
    assert [axes.get_ylabel() for axes in drawn.axes[::6]] == [str(row) for row in range(rows)]
    for draw in FIGURES.values():
        assert draw(sight, pictures).axes


def test_rows_layers_and_marks_are_chosen_evenly() -> None:
    sight: Sight = see(loaded_llava(), picture(), METHOD, to_global=False)
    assert shown_layers(sight.flow) == [0, 2, 3, 4, 6]
    assert shown_rows(sight.flow) == [0]
    assert kept_rows(torch.tensor([0, 5]), (2, 1, 3)).tolist() == [[[True, False, False]], [[False, False, True]]]


ORDINARY = ("llava_next",)
EVERY = [pytest.param(name, marks=() if name in ORDINARY else pytest.mark.families) for name in zoo.CASES]


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_every_family_has_its_figures(name: str) -> None:
    model, inputs = zoo.case(name).model, zoo.case(name).together(zoo.case(name).samples)
    with observe(model, to_global=True) as flow:
        model(**inputs)
    with attach(model, METHOD) as handle:
        model(**inputs)
    for seen, trace in zip(flow.images[-1:], handle.trace.images[-1:], strict=True):
        pictures = [np.zeros((8, 8, 3), dtype=np.float32)] * rows_of(seen)
        for draw in FIGURES.values():
            assert draw(Sight("what?", METHOD, seen, trace, torch.zeros(1)), pictures).axes


def test_a_clip_is_compared_and_reported_frame_by_frame() -> None:
    loaded, shown = loaded_video("video_llava"), clip()
    methods = make_methods("flowcut,random", None, 0.3)
    comparison = compare(loaded, methods, shown, "what?", max_new_tokens=1, repeats=1)
    sight = see(loaded, shown, METHOD, to_global=False)
    data = report_data(sight, pictures_of(sight, shown, loaded.processor), comparison, "tiny", "a clip")
    assert data["grid"] == [2, 6, 6] and len(data["pictures"]) == 2
    assert [one["grid"] for one in data["compared"]] == [[2, 6, 6], [2, 6, 6]]
    assert data["row_name"] == "frame" and data["compared"][0]["budget"] == "30%"
