"""The evaluation end to end: on a tiny model, and on the model that ships with flowcut."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_checkpoint
import torch
from shipped import require_mini
from transformers import LlavaForConditionalGeneration
from typer.testing import CliRunner

from flowcut import UnsupportedModelError, attach
from flowcut.cli import app
from flowcut.tasks import TASKS, load_split, right
from flowcut.tasks import evaluation as under_test
from flowcut.tasks.evaluation import choose_questions
from flowcut.tasks.metrics import TaskScore
from flowcut.tasks.oracle import Oracle, asked_patches
from flowcut.tasks.rows import RowFile


def call_eval(*options: Any) -> dict[str, Any]:
    outcome = CliRunner().invoke(app, ["eval", "--json", "--device", "cpu", *(str(option) for option in options)])
    assert outcome.exit_code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


def accuracies(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything but seconds."""
    timed = ("prefill_seconds", "tower_seconds", "speedup")
    return [{key: value for key, value in row.items() if key not in timed} for row in report["rows"]]


def stored_answers(folder: Path) -> dict[str, list[str]]:
    """By method and budget, such as ``flowcut-16``."""
    plans = {f"{row.plan.method}-{row.plan.target_num}": row.answers for row in RowFile(folder).table()}
    return dict(sorted(plans.items()))


def test_a_slice_end_to_end_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    config = tiny.tiny_config()
    config.text_config.num_hidden_layers = 4
    LlavaForConditionalGeneration(config).save_pretrained(checkpoint)
    common = ("--model", checkpoint, "--limit", 20, "--target-num", "16,9", "--method", "flowcut,fastv")
    first = call_eval(*common, "--batch-size", 16, "--output", tmp_path / "a")
    second = call_eval(*common, "--batch-size", 3, "--output", tmp_path / "b")
    assert accuracies(first) == accuracies(second)
    assert stored_answers(tmp_path / "a") == stored_answers(tmp_path / "b")
    assert all(len(answers) == 20 for answers in stored_answers(tmp_path / "a").values())
    uncut, flowcut_16, _, fastv_16, _ = first["rows"]
    assert first["questions"] == 20 == sum(value for key, value in uncut.items() if key.endswith("_n"))
    assert (uncut["visual_tokens"], flowcut_16["visual_tokens"], fastv_16["visual_tokens"]) == (36, 16, 36)
    assert uncut["average_low"] <= uncut["average"] <= uncut["average_high"]
    assert flowcut_16["flops"] < uncut["flops"] and flowcut_16["kv_entries"] == uncut["kv_entries"] - 20

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a finished row was computed again")

    monkeypatch.setattr(under_test, "evaluate_row", refuse)
    assert call_eval(*common, "--output", tmp_path / "a") == first
    with (tmp_path / "a" / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["uncut", "flowcut", "flowcut", "fastv", "fastv"]
    assert (tmp_path / "a" / "table.md").read_text().count("\n|") == 6
    third = call_eval(*common[:-1], "fastv", "--output", tmp_path / "a")
    assert third["rows"] == [first["rows"][index] for index in (0, 3, 4)]
    with (tmp_path / "a" / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["uncut", "fastv", "fastv", "flowcut", "flowcut"]
    assert (tmp_path / "a" / "accuracy.png").stat().st_size > 1000


def test_a_run_that_was_interrupted_goes_on_with_the_row_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    common = ("--model", checkpoint, "--limit", 3, "--target-num", "16,9,4", "--output", tmp_path / "out")
    measured: list[int | None] = []
    whole = under_test.evaluate_row

    def interrupted(loaded: Any, plan: Any, *arguments: Any, **options: Any) -> Any:
        if plan.target_num == 9 and 9 not in measured:
            measured.append(9)
            raise KeyboardInterrupt
        measured.append(plan.target_num)
        return whole(loaded, plan, *arguments, **options)

    monkeypatch.setattr(under_test, "evaluate_row", interrupted)
    words = [str(word) for word in ("eval", "--json", "--device", "cpu", *common)]
    assert CliRunner().invoke(app, words).exit_code != 0
    assert list(stored_answers(tmp_path / "out")) == ["flowcut-16", "uncut-None"]
    assert [row["target_num"] for row in call_eval(*common)["rows"]] == [None, 16, 9, 4]
    assert measured == [None, 16, 9, 9, 4]


def test_the_average_has_an_interval() -> None:
    scores = {
        "exist": TaskScore("exist", 100, 0.5, (0.4, 0.6)),
        "name": TaskScore("name", 400, 0.8, (0.75, 0.85)),
    }
    row = under_test.Row(under_test.RowPlan("uncut"), scores, None, 1.0, [])  # type: ignore[arg-type]
    half = 1.96 * (0.5 * 0.5 / 100 + 0.8 * 0.2 / 400) ** 0.5 / 2
    assert row.average_interval == pytest.approx((0.65 - half, 0.65 + half), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "exist,nothing"), "Unknown tasks: nothing"),
        (("--method", "magic"), "Unknown method 'magic'"),
        (("--target-num", "64,many"), "whole numbers"),
        (("--target-num", "0"), "at least 1"),
        (("--positions", "sideways"), "compact"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    outcome = CliRunner().invoke(app, ["eval", "--model", str(tmp_path), "--output", str(tmp_path), *options])
    assert outcome.exit_code == 2 and message in " ".join(outcome.stderr.split())


def test_a_limit_takes_whole_scenes_from_all_over_the_split() -> None:
    split = load_split()
    asked = choose_questions(split, TASKS, 60)
    numbers = [number for number, _, _ in asked]
    assert sum(len(questions) for _, _, questions in asked) == 60
    assert numbers == sorted(set(numbers)) and numbers[-1] > len(split.scenes) // 2
    colors = choose_questions(split, ["color"])
    assert {question.task for _, _, questions in colors for question in questions} == {"color"}


def test_per_task_takes_the_same_number_of_questions_from_every_task() -> None:
    split = load_split()
    asked = choose_questions(split, TASKS, per_task=30)
    counts = Counter(question.task for _, _, questions in asked for question in questions)
    assert counts == dict.fromkeys(TASKS, 30)
    numbers = [number for number, _, _ in asked]
    assert numbers == sorted(set(numbers)) and len(numbers) < len(split.scenes) / 3
    said = {question.answer for _, _, questions in asked for question in questions if question.task == "exist"}
    assert said == {"Yes", "No"}
    all_of_them = choose_questions(split, ["read"], per_task=10**6)
    assert sum(len(questions) for _, _, questions in all_of_them) == 310
    with pytest.raises(ValueError, match="cannot both be given"):
        choose_questions(split, TASKS, 10, 10)


def test_the_oracle_keeps_what_is_asked_about() -> None:
    scene = load_split().scenes[0]
    for question in scene.questions:
        kept = asked_patches(scene.touched, question.about, 64, np.random.default_rng(0))
        wanted = set(np.flatnonzero(scene.patches(question).reshape(-1)).tolist()) if question.about else set()
        assert len(kept) == 64 and kept == tuple(sorted(set(kept)))
        assert wanted <= set(kept) if len(wanted) <= 64 else set(kept) <= wanted or len(wanted & set(kept)) >= 32
    with pytest.raises(ValueError, match="ascending"):
        Oracle(target_num=2, patches=(3, 1))
    photo = load_split("photo-v2").scenes[0]
    with pytest.raises(ValueError, match="split with masks"):
        under_test.oracle_patches(under_test.RowPlan("oracle", 64), 0, photo, photo.questions[0])


def test_the_oracle_cuts_the_towers_output_to_its_patches() -> None:
    config = tiny.tiny_config()
    config.vision_config.image_size = 14 * 24
    model = LlavaForConditionalGeneration(config).eval()
    pixels = torch.rand(1, 3, 336, 336)
    prompt = torch.tensor([[1, *[tiny.IMAGE_TOKEN] * 576, 5]])
    whole = model.get_image_features(pixel_values=pixels).pooler_output[0]
    with attach(model, Oracle(target_num=3, patches=(0, 77, 575))) as handle:
        model(input_ids=prompt, pixel_values=pixels)
        assert handle.trace.images[0].kept.tolist() == [0, 77, 575]
        cut = model.get_image_features(pixel_values=pixels).pooler_output[0]
    torch.testing.assert_close(cut, whole[[0, 77, 575]])
    with attach(tiny.tiny_model(), Oracle(target_num=1, patches=(5,))) as handle:
        small = torch.rand(1, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
        with pytest.raises(UnsupportedModelError, match="24 x 24"):
            handle.model.get_image_features(pixel_values=small)


def test_a_slice_on_the_model_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_mini()
    monkeypatch.setattr(under_test, "COST_REPEATS", 1)
    report = call_eval("--limit", 12, "--target-num", 64, "--output", tmp_path)
    uncut, flowcut = report["rows"]
    assert (uncut["visual_tokens"], flowcut["visual_tokens"]) == (576, 64)
    assert flowcut["speedup"] > 1
    truths = [question for _, _, questions in choose_questions(load_split(), TASKS, 12) for question in questions]
    answers = stored_answers(tmp_path)
    hits = {
        name.split("-")[0]: sum(right(answer, asked.answer) for answer, asked in zip(said, truths, strict=True))
        for name, said in answers.items()
    }
    assert hits["uncut"] >= 4, answers
