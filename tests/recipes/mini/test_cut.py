"""Going on with training on kept tokens: the same dialogues for every method, resuming, and what is asked."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from flowcut import FlowCut, Method, attach
from flowcut.checkpoints.loading import LoadedModel
from recipes.mini import curves, cut, cut_trial, seeing
from recipes.mini.student import Student
from recipes.mini.workspace import Workspace


@pytest.mark.parametrize("method", [None, FlowCut(target_num=9), FlowCut(target_num=9, positions="original")], ids=str)
def test_what_is_kept_of_a_picture_is_what_the_attached_model_keeps(method: Method | None) -> None:
    model = tiny.tiny_model()
    pixels = tiny.pictures(1)
    found, seconds = seeing.encoded(LoadedModel(model, None, torch.device("cpu"), torch.float32), method, pixels)
    base: Any = model.model
    kept = torch.arange(tiny.PATCHES)
    if method is None:
        expected = base.get_image_features(pixels).pooler_output[0]
    else:
        with attach(model, method) as handle:
            expected = base.get_image_features(pixels).pooler_output[0]
            model(input_ids=torch.tensor([tiny.prompt()]), pixel_values=pixels)
            kept = handle.trace.images[0].kept if method.positions == "original" else torch.arange(9)
    assert torch.equal(found.positions, kept) and seconds >= 0
    torch.testing.assert_close(found.projected, expected)


def seen(loaded: Any, method: Any, pictures: Iterator[Any], folder: Path) -> Iterator[seeing.Seen]:
    """Nine random tokens for every picture."""
    for number, _ in enumerate(pictures):
        projected = torch.randn(9, 576, generator=torch.Generator().manual_seed(number))
        yield seeing.Seen(projected, torch.arange(9))


def test_an_interrupted_stage_goes_on_to_the_weights_of_an_unbroken_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "see", seen)
    Student(workspace).save(tmp_path / "start")
    loaded: Any = None
    going = cut.Going(workspace, loaded, 4, tmp_path / "start", seed=0)

    def run(stop: int | None) -> Path:
        def progress(done: int, line: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        return cut.train_cut(going, FlowCut(target_num=9), save_every=2, progress=progress)

    folder = workspace.training / "cut" / "flowcut-9-seed-0"
    with pytest.raises(KeyboardInterrupt):
        run(3)
    assert len((folder / "log.csv").read_text().splitlines()) == 4
    run(None)
    broken, log = load_file(folder / "4" / "adapters.safetensors"), (folder / "log.csv").read_text()
    folder.rename(tmp_path / "broken")
    expected = load_file(run(None) / "4" / "adapters.safetensors")
    for name, weight in broken.items():
        assert torch.equal(weight, expected[name]), name
    assert log == (folder / "log.csv").read_text()
    assert [row["dialogue"] for row in csv.DictReader((folder / "log.csv").open())] == ["1", "2", "3", "4"]


def test_the_trial_asks_before_on_the_way_and_after_with_each_ones_tokens(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "see", seen)
    monkeypatch.setattr(cut_trial, "load_model", lambda name, device: None)
    monkeypatch.setattr(cut_trial, "time_cut", lambda going, methods, steps: {"flowcut-9": [[1.0, 2.0]]})
    Student(workspace).save(tmp_path / "start")
    target = tmp_path / "cut.json"
    target.write_text(json.dumps({"seed 7": {}}))
    names = ["flowcut(target_num=9)", "uncut"]
    cut_trial.run_cut(workspace, names, 1, 2, 1, 1, tmp_path / "start", Console(quiet=True), target)
    stored: dict[str, Any] = json.loads(target.read_text())
    assert stored.keys() == {"seed 7", "seed 1, 2 scenes"}
    stored = stored["seed 1, 2 scenes"]
    assert stored["seconds"] == {"flowcut-9": [[1.0, 2.0]]}
    asked = [(one["weights"], one["dialogues"], one["tokens"]) for one in stored["answers"]]
    assert asked == [
        ("before", 0, "uncut"),
        ("before", 0, "flowcut-9"),
        ("flowcut-9", 1, "flowcut-9"),
        ("uncut", 1, "flowcut-9"),
        ("uncut", 1, "uncut"),
    ]
    counts = {task: len(hits) for task, hits in stored["answers"][0]["right"].items()}
    assert len(counts) >= 4 and all(
        {task: len(hits) for task, hits in one["right"].items()} == counts for one in stored["answers"]
    )


def test_the_curve_is_drawn_of_what_the_trial_wrote(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [
        {"weights": weights, "dialogues": done, "tokens": "flowcut-9", "right": {"exist": "0111", "count": right}}
        for weights, done, right in (("before", 0, "00"), ("flowcut-9", 6, "01"), ("flowcut-9", 12, "11"))
    ]
    assert curves.share_of(answers[1])[0] == 4 / 6
    told = {"split": "test-v1", "scenes": 2, "answers": [*answers, {**answers[2], "weights": "uncut"}]}
    (tmp_path / "cut.json").write_text(json.dumps({"seed 0": told, "seed 1": {"scenes": 3}}))
    curves.draw_cut(tmp_path / "cut.json", tmp_path / "cut.png")
    with Image.open(tmp_path / "cut.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1_000_000) or ()) > 10
