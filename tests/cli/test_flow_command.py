"""``flowcut flow``, run in this process on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_checkpoint
from PIL import Image
from typer.testing import CliRunner, Result

from flowcut.cli import app


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in ("flow", *arguments)])


def test_figures_are_written_and_told(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "model")
    picture = tiny_checkpoint.save_picture(tmp_path / "picture.png")
    options = ("--model", checkpoint, "--target-num", 9, "--device", "cpu", "--json")
    outcome = call(picture, "--output", tmp_path / "figures", *options)
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)
    assert len(told["files"]) == 10 and all(Path(path).stat().st_size > 1000 for path in told["files"])
    for path in told["files"][::2]:
        with Image.open(path) as drawn:
            assert drawn.width == 700  # a column of 3.5 inches
    assert told["tokens_after_layer"][-1] == 10  # with CLS
    assert len(told["entropy_ratio"][0]) == 8


def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    picture = tiny_checkpoint.save_picture(tmp_path / "picture.png")
    for options, message in (
        ((), "Nothing to write"),
        (("--report", tmp_path / "report.pdf"), "must end in .html"),
        (("--report", tmp_path / "none" / "report.html"), "does not exist"),
        (("--report", tmp_path / "report.html", "--budgets", "all"), "whole numbers"),
        (("--report", tmp_path / "report.html", "--methods", "visionzap"), "visionzap"),
    ):
        outcome = call(picture, *options)
        assert outcome.exit_code == 2
        assert message in " ".join(outcome.stderr.split())
