"""Pictures of every kind that a person might give, through the command line and two processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
import tiny_video
from PIL import Image
from typer.testing import CliRunner

from flowcut.cli import app


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    square, any_form = folder / "llava", folder / "qwen2_vl"
    return {
        "llava": tiny_checkpoint.save_checkpoint(square),
        "qwen2_vl": tiny_video.save_checkpoint(any_form, "qwen2_vl"),
    }


def asked(picture: Path, checkpoint: Path) -> Any:
    arguments = ("run", picture, "what?", "--model", checkpoint, "--method", "flowcut_plus", "--target-num", 4)
    options = (
        "--repeats",
        1,
        "--max-new-tokens",
        2,
        "--device",
        "cpu",
        "--overlay",
        picture.with_suffix(".overlay.png"),
        "--json",
    )
    return CliRunner().invoke(app, [str(one) for one in (*arguments, *options)])


def save_kind(kind: str, folder: Path) -> Path:
    """A picture file of some kind."""
    first, more = Image.new("RGB", (64, 48), "navy"), [Image.new("RGB", (64, 48), name) for name in ("red", "lime")]
    forms = {"one pixel.png": (1, 1), "strip.png": (4000, 30), "tower.jpg": (30, 4000)}
    path = folder / kind
    if kind in forms:
        Image.new("RGB", forms[kind], "navy").save(path)
    elif kind.startswith("animated"):
        first.save(path, save_all=True, append_images=more)
    else:
        first.convert({"lab.tif": "LAB", "cmyk.tif": "CMYK", "grey.png": "L", "bits.png": "1"}.get(kind, "RGB")).save(
            path
        )
    return path


KINDS = (
    "one pixel.png",
    "strip.png",
    "tower.jpg",
    "animated.gif",
    "animated.png",
    "animated.webp",
    "lab.tif",
    "cmyk.tif",
)


@pytest.mark.parametrize("model", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("kind", [*KINDS, "grey.png", "bits.png", "icon.ico", "old.bmp"])
def test_any_picture_is_answered_about(tmp_path: Path, checkpoints: dict[str, Path], kind: str, model: str) -> None:
    outcome = asked(save_kind(kind, tmp_path), checkpoints[model])
    assert outcome.exit_code == 0, outcome.stderr
    (image,) = json.loads(outcome.stdout)["images"]
    assert len(image["kept"]) == min(4, image["patches"])


def test_a_form_that_the_processor_refuses_is_told_in_its_words(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    Image.new("RGB", (4000, 10)).save(tmp_path / "thread.png")
    outcome = asked(tmp_path / "thread.png", checkpoints["qwen2_vl"])
    assert outcome.exit_code == 2 and outcome.stdout == ""
    assert outcome.stderr.strip() == "Error: absolute aspect ratio must be smaller than 200, got 400.0"
