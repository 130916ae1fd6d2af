"""`flowcut serve` says before vLLM starts what cannot be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from typer.testing import CliRunner

from flowcut.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("served"))


def serve(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("flowcat", "flowcut_plus"),
        ("flowcut(histery=0.7)", "history"),
        ("cdpruner", "reads the question"),
        ("flowcut_plus(relevance=text)", "reads the question"),
        ("fastv", "reads the question"),
    ],
)
def test_a_method_that_cannot_be_served(method: str, words: str, folder: Path) -> None:
    told = serve(folder, "--method", method, "--target-num", 9)
    assert told.exit_code == 2
    assert words in told.stderr and "Traceback" not in told.stderr


def test_a_model_that_flowcut_does_not_know(tmp_path: Path) -> None:
    config = {"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = serve(tmp_path, "--target-num", 9)
    assert told.exit_code == 2 and "Q-Former" in told.stderr


def test_without_vllm_it_says_how_to_come_by_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    told = serve(folder, "--target-num", 9)
    assert told.exit_code == 2 and "pip install vllm" in told.stderr
    shown = serve(folder, "--target-num", 9, "--port", 80, "--show")
    command = json.loads(shown.stdout)
    assert shown.exit_code == 0 and command[-2:] == ["--port", "80"] and str(folder) in command
