"""``flowcut answer`` and ``flowcut score`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
import toy_questions
from typer.testing import CliRunner, Result

from flowcut import FlowCut
from flowcut.checkpoints.memory import write_memory
from flowcut.cli import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("tiny"))


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_answer(checkpoint: Path, questions: Path, images: Path, output: Path, *more: Any) -> Result:
    files = ("--questions", questions, "--images", images, "--output", output)
    fast = ("--model", checkpoint, "--max-new-tokens", 2, "--device", "cpu", "--batch-size", 4)
    return call("answer", *files, *fast, *more)


def test_pope_answered_and_judged(checkpoint: Path, tmp_path: Path) -> None:
    questions, images, annotations = toy_questions.pope(tmp_path, 2)
    output = tmp_path / "answers.jsonl"
    more = ("--target-num", 9, "--score", annotations)
    done = call_answer(checkpoint, questions, images, output, *more, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["questions"], told["answers"], told["asked"], told["visual_tokens"]) == (6, 6, 6, 9)
    score = told["score"]
    assert score["benchmark"] == "POPE" and set(score["details"]) == set(toy_questions.CATEGORIES)
    again = call_answer(checkpoint, questions, images, output, *more)
    assert again.exit_code == 0 and "6 of 6 questions answered, 0 of them asked now" in again.stdout
    assert "9.0 visual tokens a picture" in again.stdout and "adversarial" in again.stdout
    alone = call("score", output, "--annotations", annotations, "--questions", questions, "--json")
    assert json.loads(alone.stdout) == score


def test_textvqa_and_scienceqa_are_judged_too(checkpoint: Path, tmp_path: Path) -> None:
    for make, benchmark in ((toy_questions.textvqa, "TextVQA"), (toy_questions.scienceqa, "ScienceQA")):
        questions, images, annotations = make(tmp_path / benchmark)
        output = tmp_path / f"{benchmark}.jsonl"
        more = ("--method", "uncut", "--limit", 2, "--score", annotations, "--json")
        done = call_answer(checkpoint, questions, images, output, *more)
        assert done.exit_code == 0, done.stderr
        told = json.loads(done.stdout)["score"]
        assert (told["benchmark"], told["questions"]) == (benchmark, 2)


def test_a_broken_picture_is_exit_status_1(checkpoint: Path, tmp_path: Path) -> None:
    questions, images, annotations = toy_questions.pope(tmp_path, 2)
    (images / "COCO_1.png").unlink()
    done = call_answer(checkpoint, questions, images, tmp_path / "answers.jsonl", "--score", annotations)
    assert done.exit_code == 1
    assert done.stderr.count("Left out: question") == 3 and "COCO_1.png" in done.stderr
    assert "Error: 3 of 6 questions have no answer; run again to ask them alone." in done.stderr
    assert "3 of 6 questions answered" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "uncut", "--target-num", 4], "uncut takes no settings and no budget"),
        (["--method", "scissors"], "Unknown method 'scissors'"),
        (["--conv-mode", "llava_v0"], "The conversation 'llava_v0' is unknown"),
        (["--num-chunks", 2, "--chunk-idx", 2], "Of 2 chunks, numbers 0 to 1 exist; got 2"),
        (["--num-chunks", 2, "--score", "."], "A piece has no score"),
        (["--images", "/nowhere"], "No folder with images found at '/nowhere'"),
        (["--questions", "q.txt"], "q.txt is no question file"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(
    checkpoint: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    questions, images, _ = toy_questions.pope(tmp_path, 1)
    done = call_answer(checkpoint, questions, images, tmp_path / "answers.jsonl", *options)
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_mistake_leaves_nothing_that_stands_in_the_way(checkpoint: Path, tmp_path: Path) -> None:
    questions, images, _ = toy_questions.pope(tmp_path, 1)
    output = tmp_path / "answers.jsonl"
    assert call_answer(tmp_path / "gone", questions, images, output).exit_code == 2
    assert call_answer(checkpoint, questions, images, output).exit_code == 0


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    answers = toy_questions.write_lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "x"}])
    done = call("score", answers, "--annotations", tmp_path / "gone")
    assert done.exit_code == 2 and "No annotations found" in done.stderr


def test_a_checkpoint_is_asked_with_the_method_that_it_was_trained_with(tmp_path: Path) -> None:
    questions, images, _ = toy_questions.pope(tmp_path, 1)
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "trained")
    write_memory(FlowCut(target_num=8, history=0.7), checkpoint)
    done = call_answer(checkpoint, questions, images, tmp_path / "own.jsonl", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["visual_tokens"] == 8, done.stderr
    (answer, *_) = toy_questions.read_lines(tmp_path / "own.jsonl")
    assert answer["metadata"] == {"method": "flowcut(history=0.7,target_num=8)"}
    other = call_answer(checkpoint, questions, images, tmp_path / "other.jsonl", "--target-num", 9)
    assert other.exit_code == 0 and "was trained with target_num=8" in other.stderr
