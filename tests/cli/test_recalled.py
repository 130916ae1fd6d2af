"""The commands find the method that a checkpoint was trained with, say so, and warn of another budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from typer.testing import CliRunner

from flowcut import FlowCut
from flowcut.checkpoints.memory import Memory, write_memory
from flowcut.cli import app
from flowcut.cli.eval import plan_rows, rows_wanted

TRAINED = FlowCut(target_num=9, history=0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that remembers."""
    place = tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("trained"))
    write_memory(TRAINED, place)
    tiny_checkpoint.save_picture(place / "picture.png")
    return place


def call(command: str, folder: Path, *options: Any) -> Any:
    arguments = [command, str(folder / "picture.png"), "what is shown ?", "--model", str(folder), "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "1", "--device", "cpu", "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), " ".join(done.stderr.split())


def test_run_attaches_what_the_checkpoint_was_trained_with(folder: Path) -> None:
    report, told = call("run", folder)
    assert report["method"]["target_num"] == 9 and report["method"]["history"] == 0.7
    assert "was trained with flowcut(history=0.7,target_num=9)" in told and "Warning" not in told


def test_run_warns_of_another_budget_and_keeps_the_method(folder: Path) -> None:
    report, told = call("run", folder, "--target-num", "5")
    assert report["method"]["target_num"] == 5 and report["method"]["history"] == 0.7
    assert "Warning: The checkpoint was trained with target_num=9" in told and "now run with target_num=5" in told


def test_run_with_another_method_takes_the_remembered_budget(folder: Path) -> None:
    report, told = call("run", folder, "--method", "uniform")
    assert report["method"]["name"] == "uniform" and report["method"]["target_num"] == 9 and "Warning" not in told


def test_compare_takes_the_remembered_budget_and_the_remembered_settings_first(folder: Path) -> None:
    report, told = call("compare", folder)
    assert report["rows"][0]["settings"]["history"] == 0.7
    assert {row["settings"]["target_num"] for row in report["rows"]} == {9} and "Warning: The" not in told
    _, told = call("compare", folder, "--methods", "uniform", "--target-num", "5")
    assert told.count("Warning: The checkpoint was trained with target_num=9") == 1


def test_a_benchmark_measures_the_remembered_method_and_budget(folder: Path) -> None:
    asked = ["bench", "--model", str(folder), "--image", str(folder / "picture.png"), "--question", "what is shown ?"]
    asked += ["--new-tokens", "2", "--rounds", "1", "--device", "cpu", "--json"]
    for given, budget in (((), 9), (("--target-num", "5"), 5)):
        done = CliRunner().invoke(app, [*asked, *given])
        assert done.exit_code == 0, done.output
        cases = json.loads(done.stdout)["cases"]
        assert [case["target_num"] for case in cases] == [None, budget] and cases[1]["method"] == "flowcut(history=0.7)"
        told = " ".join(done.stderr.split())
        assert "was trained with flowcut(history=0.7,target_num=9)" in told
        assert ("Warning: The checkpoint was trained with target_num=9" in told) == (budget == 5)


def test_an_evaluation_takes_the_remembered_method_and_budget() -> None:
    assert rows_wanted(None, None, None) == ("flowcut", [192, 128, 64, 32])
    assert rows_wanted(None, None, Memory(TRAINED)) == ("flowcut(history=0.7)", [9])
    assert rows_wanted("uniform", "5,9", Memory(TRAINED)) == ("uniform", [5, 9])
    with pytest.raises(ValueError, match="a share of an image's tokens"):
        rows_wanted(None, None, Memory(FlowCut(retain_ratio=0.5)))
    plans = plan_rows(*rows_wanted(None, None, Memory(TRAINED)), [])
    assert plans[-1].build() == TRAINED
