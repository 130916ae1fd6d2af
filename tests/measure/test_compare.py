"""Several methods on equal terms, and the table and picture of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from typer.testing import CliRunner

from flowcut import FastV, FlowCut, PyramidDrop, UnsupportedModelError, attach
from flowcut.attaching import HANDLE
from flowcut.checkpoints.loading import LoadedModel
from flowcut.cli import app
from flowcut.inputs.prompting import model_inputs
from flowcut.measure.compare import Comparison, compare
from flowcut.view.comparison import draw_comparison
from flowcut.view.overlay import restore_pixels

QUESTION = "what is shown?"
METHODS = [FlowCut(target_num=8), FastV(target_num=8, layers=1), PyramidDrop(target_num=8)]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(tiny.tiny_model(), tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def result(loaded: LoadedModel, picture: Path) -> Comparison:
    image = Image.open(picture).convert("RGB")
    return compare(loaded, METHODS, image, QUESTION, max_new_tokens=4, repeats=1)


def test_every_row_is_what_the_method_gives_alone(loaded: LoadedModel, picture: Path, result: Comparison) -> None:
    inputs = model_inputs(loaded.processor, Image.open(picture).convert("RGB"), QUESTION)
    model: Any = loaded.model
    for row in result.rows[:2]:
        with attach(loaded.model, row.method) as handle:
            output = model.generate(**inputs, do_sample=False, max_new_tokens=4)
            model(**inputs)
            sequence = handle.trace.sequence
        assert sequence is not None and row.outcome is not None and row.kept is not None
        answer = loaded.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row.outcome.answer == answer.strip()
        assert row.outcome.flops == sequence.flops[0]
        assert row.kept.tolist() == sequence.patches_at_the_end(0).tolist() and len(row.kept) == 8
    assert [row.outcome.visual_tokens for row in result.rows[:2] if row.outcome] == [8, tiny.PATCHES]
    assert [row.outcome.visual_tokens_mean for row in result.rows[:2] if row.outcome] == [8, (tiny.PATCHES + 8) / 2]


def test_a_method_that_refuses_is_a_row_with_its_reason(loaded: LoadedModel, result: Comparison) -> None:
    refused = result.rows[2]
    assert refused.outcome is None and "decoder layers" in refused.refusal
    assert HANDLE not in vars(loaded.model.get_submodule("model"))


def test_nothing_to_compare(loaded: LoadedModel, picture: Path) -> None:
    image = Image.open(picture).convert("RGB")
    with pytest.raises(UnsupportedModelError, match="No method can run"):
        compare(loaded, METHODS[2:], image, QUESTION, max_new_tokens=1, repeats=1)
    with pytest.raises(ValueError, match="methods must be at least 1"):
        compare(loaded, [], image, QUESTION)


def test_the_picture_has_a_panel_for_every_method_that_ran(loaded: LoadedModel, result: Comparison) -> None:
    pixels = restore_pixels(result.pixel_values[0], loaded.processor.image_processor)
    figure = draw_comparison(pixels, result)
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.split(" ")[0] for title in titles] == ["uncut:", "flowcut", "fastv"]
    shown = np.asarray(figure.axes[2].get_images()[0].get_array())
    kept = result.rows[1].kept
    assert kept is not None
    for patch in range(tiny.PATCHES):
        row, column = divmod(patch, tiny.GRID)
        same = np.allclose(shown[row * 14 + 7, column * 14 + 7], pixels[row * 14 + 7, column * 14 + 7])
        assert same == (patch in kept.tolist())


def test_the_command(picture: Path, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    drawn = tmp_path / "compare.png"
    fast = ["--repeats", "1", "--max-new-tokens", "3", "--device", "cpu", "--target-num", "8"]
    base = ["compare", str(picture), QUESTION, "--model", str(checkpoint), *fast]
    done = CliRunner().invoke(app, [*base, "--methods", "flowcut,pyramiddrop", "--output", str(drawn)])
    assert done.exit_code == 0, done.stderr
    for text in ("uncut", "flowcut", "refused", QUESTION):
        assert text in done.stdout
    with Image.open(drawn) as opened:
        assert opened.width > opened.height
    report = json.loads(CliRunner().invoke(app, [*base, "--methods", "flowcut", "--json"]).stdout)
    assert report["rows"][0]["method"] == "flowcut" and len(report["rows"][0]["kept"]) == 8
    wrong = CliRunner().invoke(app, [*base, "--methods", "flowcut,scissors"])
    assert wrong.exit_code == 2 and "Unknown method 'scissors'; known: " in wrong.stderr
