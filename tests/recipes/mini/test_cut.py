"""Going on with training on kept tokens: the same dialogues for every method, resuming, and what is asked."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from flowcut import FlowCut, Method, attach
from flowcut.checkpoints.loading import LoadedModel
from recipes.mini import cut
from recipes.mini.student import Student
from recipes.mini.workspace import Workspace


@pytest.mark.parametrize("method", [None, FlowCut(target_num=9), FlowCut(target_num=9, positions="original")], ids=str)
def test_what_is_kept_of_a_picture_is_what_the_attached_model_keeps(method: Method | None) -> None:
    model = tiny.tiny_model()
    pixels = tiny.pictures(1)
    found = cut.encoded(LoadedModel(model, None, torch.device("cpu"), torch.float32), method, pixels)
    base: Any = model.model
    kept = torch.arange(tiny.PATCHES)
    if method is None:
        expected = base.get_image_features(pixels).pooler_output[0]
    else:
        with attach(model, method) as handle:
            expected = base.get_image_features(pixels).pooler_output[0]
            model(input_ids=torch.tensor([tiny.prompt()]), pixel_values=pixels)
            kept = handle.trace.images[0].kept if method.positions == "original" else torch.arange(9)
    assert torch.equal(found["positions"], kept)
    assert torch.allclose(found["projected"].float(), expected, atol=1e-2) and found["seconds"] >= 0


def seen(loaded: Any, method: Any, pictures: Iterator[Any], folder: Path) -> Iterator[cut.Seen]:
    """Nine random tokens for every picture."""
    for number, _ in enumerate(pictures):
        projected = torch.randn(9, 576, generator=torch.Generator().manual_seed(number))
        yield cut.Seen(projected, torch.arange(9), 0.1)


def test_an_interrupted_stage_goes_on_to_the_weights_of_an_unbroken_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "see", seen)
    Student(workspace).save(tmp_path / "start")

    def run(stop: int | None) -> Path:
        def progress(done: int, line: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        options: dict[str, Any] = {"start_from": tmp_path / "start", "save_every": 2, "progress": progress}
        return cut.train_cut(workspace, None, FlowCut(target_num=9), 4, **options)  # type: ignore[arg-type]

    folder = workspace.training / "cut" / "flowcut-9"
    with pytest.raises(KeyboardInterrupt):
        run(3)
    run(None)
    broken = load_file(folder / "4" / "adapters.safetensors")
    folder.rename(tmp_path / "broken")
    expected = load_file(run(None) / "4" / "adapters.safetensors")
    for name, weight in broken.items():
        assert torch.equal(weight, expected[name]), name
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [row["dialogue"] for row in rows] == ["1", "2", "3", "4"] and {row["tower_seconds"] for row in rows} == {
        "0.1"
    }
