"""Settings of methods, wherever a command names a method."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.tasks import evaluation

QUESTION = "what is shown?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ask(command: str, picture: Path, checkpoint: Path, *options: Any) -> Any:
    fast = ("--repeats", 1, "--max-new-tokens", 2, "--device", "cpu")
    return call(command, picture, QUESTION, "--model", checkpoint, *fast, *options)


def test_run_sets_what_is_set(picture: Path, checkpoint: Path) -> None:
    given = ("--target-num", 8, "--set", "history=0.7", "--set", "cut_every=none")
    report = json.loads(ask("run", picture, checkpoint, *given, "--json").stdout)
    method = report["method"]
    assert (method["name"], method["history"], method["cut_every"], method["target_num"]) == ("flowcut", 0.7, None, 8)
    # A single cut leaves all patches alive until then.
    assert list(report["images"][0]["kept_after_layer"]) == ["5"]
    shown = ask("run", picture, checkpoint, *given)
    assert shown.exit_code == 0 and "flowcut(history=0.7,cut_every=none)" in "".join(
        shown.stdout.replace("│", " ").split()
    )
    same = ask("run", picture, checkpoint, "--method", "flowcut(history=0.7,target_num=8)", "--json")
    assert json.loads(same.stdout)["method"] == {**method, "cut_every": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "histroy=1"), "flowcut has no setting 'histroy'; it has: history (a number), cut_every"),
        (("--set", "cut_every=1.5"), "flowcut: cut_every takes a whole number or none; got '1.5'."),
        (("--set", "criteria=some"), "flowcut: criteria takes all or relation; got 'some'."),
        (("--set", "history"), "A setting is given as NAME=VALUE, such as history=0.7; got 'history'."),
        (("--set", "history=1"), "history must lie in [0, 1)"),
        (("--method", "flowcut,fastv"), "One method is wanted here, got 2"),
        (("--set", "target_num=9", "--target-num", 9), "The budget is given twice"),
    ],
)
def test_run_names_what_is_allowed(picture: Path, checkpoint: Path, options: tuple[Any, ...], message: str) -> None:
    outcome = ask("run", picture, checkpoint, *options)
    assert outcome.exit_code == 2 and outcome.stderr.count("\n") == 1 and message in outcome.stderr


def test_compare_tells_the_same_method_with_other_settings_apart(
    picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    methods = "flowcut(history=0.7),flowcut(criteria=relation,cut_every=none),flowcut(history=.7),fastv(layers=1)"
    given = ("--methods", methods, "--target-num", 8)
    rows = json.loads(ask("compare", picture, checkpoint, *given, "--json").stdout)["rows"]
    assert [(row["method"], row["settings"].get("history")) for row in rows] == [
        ("flowcut", 0.7),
        ("flowcut", 0.5),
        ("fastv", None),
    ]
    assert rows[1]["settings"]["cut_every"] is None and rows[0]["kept"] != rows[1]["kept"]
    shown = ask("compare", picture, checkpoint, *given, "--output", tmp_path / "compare.png")
    assert shown.exit_code == 0 and (tmp_path / "compare.png").stat().st_size > 1000
    first_column = "".join(line.split()[0] for line in shown.stdout.splitlines() if line.strip())
    for method in ("uncut", "flowcut(history=0.7)", "flowcut(cut_every=none,criteria=relation)", "fastv(layers=1)"):
        assert first_column.count(method) == 1
    wrong = ask("compare", picture, checkpoint, "--methods", "flowcut(speed=3)")
    assert wrong.exit_code == 2 and "flowcut has no setting 'speed'" in wrong.stderr


def test_compare_prepares_the_shipped_model_once(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []

    def refuse() -> None:
        prepared.append(1)
        raise ValueError("enough seen")

    monkeypatch.setattr("flowcut.checkpoints.mini.mini_folder", refuse)
    assert "enough seen" in call("compare", picture, QUESTION).stderr
    assert prepared == [1]


def test_settings_are_part_of_a_rows_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    config = tiny.tiny_config()
    config.text_config.num_hidden_layers = 4
    LlavaForConditionalGeneration(config).save_pretrained(checkpoint)
    common = ("eval", "--model", checkpoint, "--limit", 6, "--target-num", 9, "--output", tmp_path / "out", "--json")
    monkeypatch.setattr(evaluation, "COST_REPEATS", 1)

    def rows(methods: str) -> list[dict[str, Any]]:
        outcome = call(*common, "--methods", methods)
        assert outcome.exit_code == 0, outcome.stderr
        found: list[dict[str, Any]] = json.loads(outcome.stdout)["rows"]
        return found

    first = rows("flowcut(adaptive=false),flowcut(cut_every=none, history=0.7)")
    names = ["uncut", "flowcut(adaptive=false)", "flowcut(history=0.7,cut_every=none)"]
    assert [row["method"] for row in first] == names
    assert first[1]["flops"] < first[2]["flops"], "a single late cut saves less"
    with (tmp_path / "out" / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == names
    labels = [line.split(" | ")[0] for line in (tmp_path / "out" / "efficiency.md").read_text().splitlines()[2:5]]
    assert labels == [f"| {name} 9".replace("uncut 9", "uncut") for name in names], "what each cost, beside the table"
    measured = []
    evaluate = evaluation.evaluate_row

    def counted(loaded: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        measured.append(plan.label)
        return evaluate(loaded, plan, *rest, **options)

    monkeypatch.setattr(evaluation, "evaluate_row", counted)
    again = rows("flowcut( history = 0.70, cut_every=None ),flowcut(history=0.9),flowcut(adaptive=False)")
    assert measured == ["flowcut(history=0.9) 9"]
    assert [again[1], again[3]] == [first[2], first[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "flowcut(histroy=1)"), "flowcut has no setting 'histroy'"),
        (("--method", "flowcut(history=2)"), "history must lie in [0, 1)"),
        (("--methods", "flowcut(target_num=9)"), "are given with --target-num"),
        (("--methods", "flowcut(positions=original)", "--positions", "compact"), "positions are given twice"),
        (("--methods", "oracle(positions=original)"), "oracle takes no settings"),
    ],
)
def test_eval_checks_settings_before_the_model_is_loaded(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    outcome = call("eval", "--model", tmp_path, "--output", tmp_path, *options)
    assert outcome.exit_code == 2 and message in " ".join(outcome.stderr.split())
