"""Tables measured on a tiny checkpoint with the built-in questions in LLaVA's layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
from typer.testing import CliRunner, Result

from flowcut.llava_files.scores import score_answers
from flowcut.tasks import load_split
from recipes.paper import measure
from recipes.paper.__main__ import app
from recipes.paper.benchmarks import BENCHMARKS
from recipes.paper.local import write_local
from recipes.paper.measure import Measured, Settings
from recipes.paper.tables import read_table
from recipes.paper.videos import to_judge, to_lines

LIMIT = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert write_local(load_split(), folder, LIMIT) == {"POPE": LIMIT, "GQA": LIMIT, "TextVQA": LIMIT}
    return folder


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_table(name: str, checkpoint: Path, data: Path, output: Path, *more: Any) -> Result:
    fast = ("--model", checkpoint, "--device", "cpu", "--batch-size", 2, "--limit", LIMIT, "--max-new-tokens", 1)
    return call("table", name, "--data", data, "--output", output, *fast, *more)


def test_the_local_data_is_answered_right_by_the_truth(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_local(load_split(), data, 40)
    pope, textvqa = BENCHMARKS["POPE"], BENCHMARKS["TextVQA"]
    labels = {
        (one["image"], one["text"]): one["label"]
        for path in (data / pope.annotations).iterdir()
        for one in map(json.loads, path.read_text().splitlines())
    }
    with (tmp_path / "answers.jsonl").open("w") as file:
        for one in map(json.loads, (data / pope.questions).read_text().splitlines()):
            text = labels[one["image"], one["text"]]
            file.write(json.dumps({"question_id": one["question_id"], "text": text.title()}) + "\n")
    assert set(labels.values()) == {"yes", "no"}
    score = score_answers(tmp_path / "answers.jsonl", data / pope.annotations, data / pope.questions)
    assert all(figures["accuracy"] == 100 for figures in score.details.values())
    humans = json.loads((data / textvqa.annotations).read_text())["data"]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for one in map(json.loads, (data / textvqa.questions).read_text().splitlines()):
            (right,) = [entry["answers"][0] for entry in humans if entry["image_id"] == one["question_id"]]
            line = {"question_id": one["question_id"], "prompt": one["text"], "text": right}
            file.write(json.dumps(line) + "\n")
    assert score_answers(tmp_path / "answers.jsonl", data / textvqa.annotations).value == 100


def test_a_table_is_filled_and_goes_on_where_it_ended(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--rows", "Vanilla,FlowCut -88", "--conv-mode", "vicuna_v1")
    done = call_table("3", checkpoint, data, tmp_path, *more, "--benchmarks", "POPE,GQA")
    assert done.exit_code == 0, done.output
    assert "FlowCut -88.9%: GQA" in done.stdout and "2 other model" in done.stdout
    page = (tmp_path / "table.md").read_text()
    assert "not compared: other model" in page and "| FlowCut -66.7% | 60.5 / not run |" in page
    assert f"* `{tmp_path}/FlowCut--88.9/GQA.jsonl`" in page, "GQA's own tool judges it"
    with (tmp_path / "table.csv").open() as file:
        rows = {(one["row"], one["column"]): one for one in csv.DictReader(file)}
    pope = rows["FlowCut -88.9%", "POPE"]
    assert (pope["published"], pope["mark"]) == ("81.8", "other model") and 0 <= float(pope["here"]) <= 100
    assert rows["FlowCut -88.9%", "MME"]["mark"] == "not run"
    first = (tmp_path / "FlowCut--88.9" / "POPE.jsonl").read_bytes()
    (tmp_path / "scores.json").write_text(json.dumps({"FlowCut -88.9%": {"GQA": 56.0}}))
    asked: list[Any] = []
    monkeypatch.setattr("flowcut.llava_files.run.work", lambda *arguments: asked.append(arguments))
    again = call_table("3", checkpoint, data, tmp_path, *more, "--benchmarks", "POPE,GQA")
    assert again.exit_code == 0 and asked == [], again.output
    assert (tmp_path / "FlowCut--88.9" / "POPE.jsonl").read_bytes() == first
    assert "56.4 / 56 other model" in (tmp_path / "table.md").read_text()


def test_a_row_that_does_not_fit_the_model_is_told_and_the_others_go_on(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    done = call_table("8", checkpoint, data, tmp_path, "--rows", "FastV,Vanilla", "--benchmarks", "POPE")
    assert done.exit_code == 1 and "FastV 32, POPE: Cuts inside the language model" in done.stdout
    assert (tmp_path / "Vanilla-576" / "POPE.jsonl").is_file()
    page = (tmp_path / "table.md").read_text()
    assert "| FastV 32 | 46.2 / not run |" in page and "* FastV 32, POPE: Cuts inside" in page


def test_efficiency_is_measured_next_to_the_uncut_model(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "REPEATS", 1)
    settings = Settings(
        str(checkpoint), data, tmp_path, rows=("Vanilla", "FlowCut"), limit=LIMIT, max_new_tokens=1, device="cpu"
    )
    measured = measure.measure(read_table("5"), settings)
    assert measured.problems == []
    uncut, cut = measured.figures["Vanilla 576"], measured.figures["FlowCut 64"]
    assert set(uncut) == set(cut) == {"total s", "total x", "prefill ms", "prefill x", "TFLOPs"}
    assert uncut["total x"].value == uncut["prefill x"].value == 1
    assert cut["total x"].value == pytest.approx(uncut["total s"].value / cut["total s"].value)
    assert cut["TFLOPs"].value < uncut["TFLOPs"].value


def test_names_that_the_table_does_not_have(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for more, message in (
        (["--benchmarks", "COCO"], "This table has no column 'COCO'; it has POPE."),
        (["--rows", "Blue"], "This table has no row 'Blue'"),
    ):
        done = call_table("10", checkpoint, data, tmp_path, *more)
        assert done.exit_code == 2 and message in done.stderr
    (tmp_path / "scores.json").write_text(json.dumps({"Blue": {"POPE": 1}}))
    with pytest.raises(ValueError, match="a figure for 'Blue'"):
        measure.by_hand(read_table("10"), tmp_path, Measured())


def test_every_table_is_listed() -> None:
    listed = call("tables").stdout
    assert all(f"{name:6}  " in listed for name in ("1", "5-next", "11")) and "Video-LLaVA-7B-hf" in listed


def test_videos_become_lines_and_answers_what_the_judge_takes(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("v1.mp4", "v3.avi", "v2.txt"):
        (tmp_path / "videos" / name).touch()
    asked = [
        {"video_name": f"v{number}", "question": f"q{number}", "question_id": f"i{number}"} for number in (1, 2, 3)
    ]
    right = [{"answer": f"a{number}", "question_id": f"i{number}"} for number in (1, 2, 3)]
    (tmp_path / "test_q.json").write_text(json.dumps(asked))
    (tmp_path / "test_a.json").write_text(json.dumps(right))
    lines = to_lines(tmp_path / "test_q.json", tmp_path / "videos", tmp_path / "lines.jsonl")
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(one["question_id"], one["video"]) for one in read] == [("i1", "v1.mp4"), ("i3", "v3.avi")]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"question_id": one["question_id"], "text": "t"}) + "\n" for one in read))
    judged = to_judge(answers, lines, tmp_path / "test_a.json", tmp_path / "judge.jsonl")
    assert [json.loads(line) for line in judged.read_text().splitlines()] == [
        {"id": "i1", "question": "q1", "answer": "a1", "pred": "t"},
        {"id": "i3", "question": "q3", "answer": "a3", "pred": "t"},
    ]
