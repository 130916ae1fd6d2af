"""FlowCut with a schedule that is known before a picture is seen."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import deep
import pytest
import tiny
import torch

from flowcut import FlowCut, attach, make_method
from flowcut.algorithm.calibration import Calibration
from flowcut.measure.kernels import KernelCounter
from flowcut.methods import fixed_schedule
from flowcut.methods.naming import describe

TARGET = 9
COUNTS = (10, 9, 8)
CALIBRATION = Calibration(7, 2, (0.1, 0.9), ((0.9, 0.8), (0.95, 0.9)))


@pytest.fixture
def written(tmp_path: Path) -> str:
    file = tmp_path / "schedule.json"
    fixed_schedule.write_calibration(file, CALIBRATION, "tiny", 3)
    return str(file)


def after_layers(model: Any, method: FlowCut, images: int = 3) -> list[list[int]]:
    with torch.no_grad(), attach(model, method):
        return [image.tokens_after_layer for image in model.get_image_features(tiny.pictures(images)).flowcut_images]


def test_whole_numbers_are_what_every_cut_takes() -> None:
    found = after_layers(tiny.tiny_model(), FlowCut(target_num=TARGET, schedule=COUNTS))
    assert found == [[37, 27, 27, 18, 18, 10, 10, 10]] * 3


@torch.no_grad()
def test_with_the_adaptive_counts_it_keeps_what_the_adaptive_schedule_keeps() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(1)
    with attach(model, FlowCut(target_num=TARGET)):
        (image,) = model.get_image_features(pixels).flowcut_images
    after = [37, *image.tokens_after_layer]
    counts = tuple(after[layer] - after[layer + 1] for layer in (1, 3, 5))
    with attach(model, FlowCut(target_num=TARGET, schedule=counts)):
        (fixed,) = model.get_image_features(pixels).flowcut_images
    assert torch.equal(fixed.kept, image.kept) and fixed.tokens_after_layer == image.tokens_after_layer


def test_a_file_gives_the_same_numbers_to_every_picture(written: str) -> None:
    found = after_layers(tiny.tiny_model(), FlowCut(target_num=TARGET, schedule=written))
    assert found[0] == found[1] == found[2] and found[0][-1] == 1 + TARGET
    assert fixed_schedule.read_calibration(written) == CALIBRATION


def test_a_file_that_was_written_anew_is_read_anew(written: str) -> None:
    assert fixed_schedule.read_calibration(written) == CALIBRATION
    other = replace(CALIBRATION, shares=tuple(share / 2 for share in CALIBRATION.shares))
    fixed_schedule.write_calibration(Path(written), other, "tiny", 3)
    os.utime(written, ns=(1, 1))  # the clock of a file system may be too coarse to see it
    assert fixed_schedule.read_calibration(written) == other


def test_it_is_written_on_the_command_line(written: str) -> None:
    assert make_method(f"flowcut(schedule='{written}')", target_num=9) == FlowCut(target_num=9, schedule=written)
    assert f"schedule='{written}'" in describe(FlowCut(target_num=9, schedule=written))
    assert make_method("flowcut(schedule=(10,9,8))", target_num=9) == FlowCut(target_num=9, schedule=COUNTS)
    assert make_method("flowcut(schedule=calibrated)", target_num=9).schedule == "calibrated"  # type: ignore[attr-defined]


def test_the_shipped_calibration_is_found_by_the_model_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_schedule, "SHIPPED", tmp_path)
    fixed_schedule.write_calibration(tmp_path / "tiny-model.json", CALIBRATION, "tiny-model", 3)
    model = tiny.tiny_model()
    method = FlowCut(target_num=TARGET, schedule="calibrated")
    with pytest.raises(ValueError, match=r"ships for a model without a name.*tiny-model.*flowcut calibrate"):
        after_layers(model, method)
    model.config.name_or_path = str(tmp_path / "tiny-model-0123")
    assert after_layers(model, method) == after_layers(
        model, FlowCut(target_num=TARGET, schedule=str(tmp_path / "tiny-model.json"))
    )


def test_what_ships_can_be_read() -> None:
    files = sorted(fixed_schedule.SHIPPED.glob("*.json"))
    assert [file.stem for file in files] == ["flowcut-mini"]
    assert len(fixed_schedule.read_calibration(str(files[0])).shares) == 5


@pytest.mark.parametrize("schedule", ["fast", "", (), (1.5, 2), (True, 3), (-1, 4), [3, 4], 7, "no/such/file.json"])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule"):
        FlowCut(target_num=TARGET, schedule=schedule)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"model": "x"}))
    with pytest.raises(ValueError, match=r"holds no schedule.*flowcut calibrate"):
        FlowCut(target_num=TARGET, schedule=str(file))


@pytest.mark.parametrize("setting", [{"adaptive": False}, {"couple_batch": True}, {"video_budget": "pooled"}])
def test_what_contradicts_a_fixed_schedule_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave {next(iter(setting))}"):
        FlowCut(target_num=TARGET, schedule=COUNTS, **setting)


@pytest.mark.parametrize("counts", [(10, 9), (10, 9, 9), (27,)])
def test_counts_that_do_not_lead_to_the_budget_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cuts after 3 layers \[1, 3, 5\], and 27 of an image's 36 patches"):
        after_layers(tiny.tiny_model(), FlowCut(target_num=TARGET, schedule=counts))


def test_a_calibration_for_another_tower_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="calibrated for feature layer 7 and cut_every=2; here they are 7 and 3"):
        after_layers(tiny.tiny_model(), FlowCut(target_num=TARGET, schedule=written, cut_every=3))


@torch.no_grad()
def test_the_tower_waits_for_nothing() -> None:
    counts = (79, 64, 51, 40, 52, 34, 48, 43, 33, 42, 26)
    pixels = deep.inputs()["pixel_values"]
    with attach(deep.model(), FlowCut(target_num=deep.TARGET, schedule=counts)), KernelCounter() as counted:
        deep.model().model.vision_tower(pixels)
    assert (counted.waits, counted.uploads) == (0, 0)
