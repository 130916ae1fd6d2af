"""A schedule calibrated on a tiny checkpoint, by function and by command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from typer.testing import CliRunner

from flowcut import FlowCut, attach
from flowcut.algorithm.calibration import fixed_counts
from flowcut.checkpoints.loading import LoadedModel, load_model
from flowcut.cli import app
from flowcut.inputs.prompting import model_inputs
from flowcut.measure.calibrating import calibrate, pictures_in
from flowcut.methods.fixed_schedule import read_calibration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(str(checkpoint), "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png").parent


def test_one_picture_s_calibration_gives_its_own_counts(loaded: LoadedModel, folder: Path) -> None:
    picture = Image.open(folder / "picture.png").convert("RGB")
    steps: list[int] = []
    calibration = calibrate(loaded, [picture], [0.25], on_step=lambda: steps.append(1))
    target = tiny.PATCHES // 4
    with torch.no_grad(), attach(loaded.model, FlowCut(target_num=target)) as handle:
        loaded.model(**model_inputs(loaded.processor, picture, "?"), logits_to_keep=1)
        after = [tiny.PATCHES + 1, *handle.trace.images[0].tokens_after_layer]
    counts = fixed_counts(calibration, tiny.PATCHES, target)
    assert counts == [before - left for before, left in pairwise(after) if before != left]
    assert len(steps) == 1 and calibration.shares == (0.25,)


def test_nothing_to_calibrate_by_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs pictures and budgets"):
        calibrate(loaded, [], [0.5])
    with pytest.raises(ValueError, match="no folder with pictures"):
        pictures_in(tmp_path)


def test_the_command_writes_a_file_that_the_method_reads(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "schedule.json"
    given = ["calibrate", "--images", folder, "--output", output, "--model", checkpoint, "--device", "cpu"]
    outcome = CliRunner().invoke(app, [*map(str, given), "--retain-ratios", "1/9,1/3", "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["pictures"] == 1 and len(report["ratios"]) == 2
    assert json.loads(output.read_text())["model"] == str(checkpoint)
    assert FlowCut(target_num=4, schedule=str(output)).schedule == str(output)
    assert len(read_calibration(str(output)).shares) == 2


@pytest.mark.parametrize(
    ("option", "value"), [("--retain-ratios", "2"), ("--retain-ratios", "a"), ("--output", "x.txt")]
)
def test_bad_options_are_one_red_line(folder: Path, tmp_path: Path, option: str, value: str) -> None:
    given = {"--images": str(folder), "--output": str(tmp_path / "x.json"), option: value}
    outcome = CliRunner().invoke(app, ["calibrate", *[part for pair in given.items() for part in pair]])
    assert outcome.exit_code == 2 and option in outcome.stderr
