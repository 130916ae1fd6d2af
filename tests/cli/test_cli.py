"""The command line, run in this process on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shipped
import tiny
import tiny_checkpoint
from PIL import Image
from typer.testing import CliRunner, Result

import flowcut.measure.run
from flowcut import METHODS
from flowcut.cli import app
from flowcut.models import FAMILIES

QUESTION = "what is shown?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_run(picture: Path, checkpoint: Path, *options: Any) -> Result:
    fast = ("--repeats", 1, "--max-new-tokens", 3, "--device", "cpu")
    return call("run", picture, QUESTION, "--model", checkpoint, *fast, *options)


def test_json_is_all_of_stdout_and_agrees_with_itself(picture: Path, checkpoint: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.png"
    outcome = call_run(picture, checkpoint, "--target-num", 8, "--json", "--overlay", overlay)
    assert outcome.exit_code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["model"], report["question"], report["dtype"]) == (str(checkpoint), QUESTION, "float32")
    image = report["images"][0]
    assert image["grid"] == [tiny.GRID, tiny.GRID] and len(image["kept"]) == 8
    assert [len(kept) for kept in image["kept_after_layer"].values()][-1] == 8
    uncut, cut = report["uncut"], report["cut"]
    assert (uncut["visual_tokens"], cut["visual_tokens"]) == (tiny.PATCHES, 8)
    assert uncut["kv_entries"] - cut["kv_entries"] == tiny.PATCHES - 8
    assert cut["flops"]["total"] < uncut["flops"]["total"]
    assert report["overlay"] == str(overlay)
    with Image.open(overlay) as drawn:
        assert drawn.width > drawn.height


def test_what_libraries_print_does_not_reach_stdout(
    picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flowcut.measure.run.run

    def noisy(*args: Any, **kwargs: Any) -> Any:
        print("noise")
        return run(*args, **kwargs)

    monkeypatch.setattr("flowcut.measure.run.run", noisy)
    outcome = call_run(picture, checkpoint, "--json")
    assert "noise" in outcome.stderr and json.loads(outcome.stdout)["question"] == QUESTION


def test_table(picture: Path, checkpoint: Path) -> None:
    outcome = call_run(picture, checkpoint, "--retain-ratio", 0.25)
    assert outcome.exit_code == 0, outcome.stderr
    for text in (QUESTION, "(36 visual tokens)", "(9 visual tokens)", "25%", "time of prefill"):
        assert text in outcome.stdout


def test_default_budget_and_warning(picture: Path, checkpoint: Path) -> None:
    outcome = call_run(picture, checkpoint, "--json")
    assert json.loads(outcome.stdout)["method"]["target_num"] == 64
    assert outcome.stderr.count("target_num=64 covers all 36 visual tokens") == 1


def test_inspect(checkpoint: Path) -> None:
    found = json.loads(call("inspect", checkpoint, "--json").stdout)["inspect"]
    assert (found["class_name"], found["cuts"]["tower"]) == ("LlavaForConditionalGeneration", "yes")
    assert "36 for each picture" in call("inspect", checkpoint).stdout
    missing = call("inspect", checkpoint / "nothing")
    assert missing.exit_code != 0 and "No model found" in missing.stderr


def test_inspect_the_model_in_the_box() -> None:
    shipped.require_mini()
    assert "576 for each picture" in call("inspect", "flowcut-mini").stdout


def test_lists() -> None:
    models = json.loads(call("models", "--json").stdout)["models"]
    assert {model["class"] for model in models} >= {family.class_name for family in FAMILIES}
    assert next(model for model in models if model["name"] == "llava")["tower"] == "yes"
    assert "cross-attention" in next(model for model in models if model["name"] == "mllama")["decoder"]
    methods = json.loads(call("methods", "--json").stdout)["methods"]
    assert [method["name"] for method in methods] == list(METHODS)
    assert next(method for method in methods if method["name"] == "flowcut")["settings"]["history"] == 0.5


@pytest.mark.parametrize("command", ["models", "methods"])
def test_lists_fit_into_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(command).stdout
    lines, words = shown.splitlines(), " ".join(shown.split())
    assert max(map(len, lines)) <= 80
    if command == "models":
        assert ["llava", "yes", "yes", "yes", "no", "yes"] in [line.split() for line in lines]
        assert "mllama: its decoder looks at the picture by cross-attention" in words
        assert "gemma3 (decoder), paligemma (decoder)" in words
    else:
        assert {line.split()[0] for line in lines if line.strip()} >= set(METHODS)
        assert "flowcut methods NAME" in words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-num", 0], "target_num must be an int of at least 1"),
        (["--target-num", 4, "--retain-ratio", 0.5], "exactly one of target_num and retain_ratio"),
        (["--method", "scissors"], "Unknown method 'scissors'"),
        (["--model", "/nowhere/at/all"], "No model found at '/nowhere/at/all'"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--overlay", "picture.txt"], "must end in one of"),
        (["--target-num", 100000], "target_num=100000 is more than the model can produce"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    picture: Path, checkpoint: Path, options: list[Any], message: str
) -> None:
    outcome = call_run(picture, checkpoint, *options)
    assert outcome.exit_code == 2
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ") and message in lines[0]
    assert outcome.stdout == ""


def test_bad_images(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text[bold].png"
    text.write_text("no image")
    for path, message in ((text, f"{text} is not an image"), (tmp_path / "gone.png", "No image found")):
        outcome = call_run(path, checkpoint)
        assert outcome.exit_code == 2 and message in outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1


def test_errors_of_ours_are_not_hidden(picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("a mistake in flowcut itself")

    monkeypatch.setattr("flowcut.measure.run.run", broken)
    outcome = call_run(picture, checkpoint)
    assert isinstance(outcome.exception, TypeError)


def test_out_of_memory_says_what_to_do(picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("flowcut.measure.run.run", full)
    outcome = call_run(picture, checkpoint)
    assert outcome.exit_code == 2 and "--dtype bfloat16" in outcome.stderr
