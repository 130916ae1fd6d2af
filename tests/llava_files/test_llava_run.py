"""Question files answered end to end on a tiny model: batches, processes, kills, full disks, broken pictures."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint
import toy_questions

from flowcut import FlowCut, FlowCutError
from flowcut.checkpoints.loading import LoadedModel, load_model
from flowcut.llava_files import processes
from flowcut.llava_files.asking import Asker
from flowcut.llava_files.job import Job, name_of
from flowcut.llava_files.parts import Entry, PartFile, Parts, entries_in
from flowcut.llava_files.prompts import inputs_of
from flowcut.llava_files.questions import QuestionFile
from flowcut.llava_files.run import answer_file

METHOD = FlowCut(target_num=9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    toy_questions.pope(folder / "pope", 2)
    toy_questions.textvqa(folder / "textvqa")
    toy_questions.scienceqa(folder / "scienceqa")
    toy_questions.mmbench(folder / "mmbench")
    return folder


@pytest.fixture
def job(checkpoint: Path, data: Path, tmp_path: Path) -> Job:
    """POPE's questions, asked of a tiny model."""
    return make_job(checkpoint, data, tmp_path / "answers.jsonl")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need no imports of their own, and a model that is loaded once."""
    monkeypatch.setattr(processes, "START", "fork")
    monkeypatch.setattr(processes, "load_model", loaded_once)


@lru_cache
def loaded_once(*arguments: Any) -> LoadedModel:
    return load_model(*arguments)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answer file of :func:`job`, asked in one go."""
    job = make_job(checkpoint, data, tmp_path_factory.mktemp("whole") / "answers.jsonl")
    answer_file(job)
    return job.output.read_bytes()


def make_job(checkpoint: Path, data: Path, output: Path) -> Job:
    file = QuestionFile(data / "pope" / "llava_pope_test.jsonl")
    images = data / "pope" / "val2014"
    return Job(file, output, str(checkpoint), images, METHOD, max_new_tokens=2, device="cpu")


def answers(job: Job) -> list[dict[str, Any]]:
    return toy_questions.read_lines(job.output)


def test_the_answer_file_is_llavas(job: Job) -> None:
    done = answer_file(job)
    questions = toy_questions.read_lines(job.questions.path)
    assert (done.questions, done.answers, done.asked, done.trouble) == (6, 6, 6, [])
    assert done.visual_tokens == 9 and done.seconds > 0
    for question, answer in zip(questions, answers(job), strict=True):
        assert list(answer) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert answer["question_id"] == question["question_id"] and answer["prompt"] == question["text"]
        assert answer["text"] == answer["text"].strip() and answer["model_id"] == Path(job.model).name
        assert answer["metadata"] == {"method": "flowcut(target_num=9)"}
    assert len({answer["answer_id"] for answer in answers(job)}) == 6
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.run.json"]


def test_the_answers_are_those_of_the_model_itself(job: Job) -> None:
    uncut = replace(job, method=None, batch_size=5)
    answer_file(uncut)
    loaded = load_model(job.model, "cpu")
    model: Any = loaded.model
    for question, answer in list(zip(job.questions.read(), answers(uncut), strict=True))[::2]:
        assert job.images is not None and question.visual is not None
        from PIL import Image

        image = Image.open(job.images / question.visual)
        side = max(image.size)
        square = Image.new("RGB", (side, side), (122, 116, 104))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        inputs = inputs_of(loaded.processor, "vicuna_v1", [question.text], [square])
        output = model.generate(**inputs, do_sample=False, max_new_tokens=2)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert answer["text"] == loaded.processor.decode(new, skip_special_tokens=True).strip()
        assert answer["metadata"] == {}


@pytest.mark.parametrize("settings", [{"batch_size": 4}, {"processes": 2}, {"processes": 4, "batch_size": 4}])
def test_batches_and_processes_give_the_same_file(job: Job, whole: bytes, settings: dict[str, int]) -> None:
    assert answer_file(replace(job, **settings)).answers == 6
    assert job.output.read_bytes() == whole


def test_chunks_joined_are_the_whole(job: Job, whole: bytes) -> None:
    joined = []
    for chunk in range(4):
        file = replace(job.questions, chunks=4, chunk=chunk)
        piece = replace(job, questions=file, output=job.output.with_name(f"4_{chunk}.jsonl"))
        answer_file(piece)
        joined += answers(piece)
    expected = [json.loads(line) for line in whole.splitlines()]
    assert [(one["question_id"], one["text"]) for one in joined] == [
        (one["question_id"], one["text"]) for one in expected
    ]


def test_scienceqa_and_mmbench(job: Job, data: Path) -> None:
    file, images, _ = data / "scienceqa" / "llava_test_CQM-A.json", data / "scienceqa" / "images" / "test", None
    science = replace(job, questions=QuestionFile(file), images=images, batch_size=3)
    assert answer_file(science).visual_tokens == 9
    assert [one["question_id"] for one in answers(science)] == ["10", "13", "16", "19"]
    bench = QuestionFile(data / "mmbench" / "mmbench_dev.tsv", all_rounds=True)
    mmbench = replace(job, questions=bench, images=None, output=job.output.with_name("mmbench.jsonl"), batch_size=4)
    answer_file(mmbench)
    first = answers(mmbench)[0]
    assert list(first) == [
        *("question_id", "round_id", "prompt", "text", "options", "option_char", "answer_id", "model_id", "metadata")
    ]
    assert [one["round_id"] for one in answers(mmbench)] == [0, 1, 2, 3, 0, 1, 0, 1, 2]


def test_longest_answers_are_llavas(job: Job, data: Path) -> None:
    free = replace(job, max_new_tokens=None)
    assert free.new_tokens == 128
    for name in ("scienceqa/llava_test_CQM-A.json", "mmbench/mmbench_dev.tsv"):
        assert replace(free, questions=QuestionFile(data / name)).new_tokens == 1024


def killed_after(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that asks ends as by ``kill -9`` in the middle of writing answer ``number`` of its own."""
    ask = Asker.ask
    opened: list[int] = []

    def dying(self: Asker, *args: Any) -> Iterator[list[Entry]]:
        for count, entries in enumerate(ask(self, *args)):
            if count == number:
                os.write(opened[-1], b'{"place": 1, "answ')
                os.kill(os.getpid(), signal.SIGKILL)
            yield entries

    monkeypatch.setattr(Asker, "ask", dying)
    enter = PartFile.__enter__
    monkeypatch.setattr(PartFile, "__enter__", lambda part: (enter(part), opened.append(part._file), part)[2])


def test_a_killed_process_loses_and_doubles_nothing(job: Job, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        killed_after(2, patched)
        with pytest.raises(FlowCutError, match=r"2 of 2 processes failed: .*ended with -9.*run the same command again"):
            answer_file(replace(job, processes=2))
    folder = Path(f"{job.output}.parts")
    files = sorted(folder.glob("*-*.jsonl"))
    assert all(path.read_text().endswith("answ") for path in files), "the last line is not finished"
    assert [entry.place for path in files for entry in entries_in(path)] == [0, 1, 3, 4] and not job.output.exists()
    done = answer_file(replace(job, batch_size=4))
    assert (done.asked, done.answers) == (2, 6)
    assert job.output.read_bytes() == whole and not folder.exists()


def test_what_is_finished_is_not_asked_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer_file(job)
    monkeypatch.setattr(processes, "load_model", None)
    left = Path(f"{job.output}.parts")
    left.mkdir()
    again = answer_file(job)
    assert (again.asked, again.answers, again.seconds) == (0, 6, first.seconds) and not left.exists()
    with pytest.raises(
        ValueError, match=r"made by another run \(method: there 'flowcut\(target_num=9\)', here 'uncut'"
    ):
        answer_file(replace(job, method=None))
    Path(f"{job.output}.run.json").unlink()
    with pytest.raises(ValueError, match="nothing beside it says how it was made"):
        answer_file(job)


def test_a_run_that_was_begun_otherwise_is_not_mixed_with(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(job.output, job.identity(), 6)
    with parts.opened(), parts.part(1, 0) as part:
        with pytest.raises(FlowCutError, match="Another process is writing"):
            answer_file(job)
        part.add([Entry(0, {"text": "x"}, 0.1)])
    with pytest.raises(ValueError, match=r"\.parts was made by another run \(max_new_tokens: there 2, here 4\)"):
        answer_file(replace(job, max_new_tokens=4))


def test_a_full_disk_is_told_and_the_rest_follows(job: Job, whole: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond it
    try:
        with pytest.raises(FlowCutError, match=r"could not be written: .*\. All answers before are kept; make room"):
            answer_file(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = answer_file(job)
    assert 0 < done.asked < 6 and job.output.read_bytes() == whole


def test_a_full_disk_at_the_very_end(job: Job, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path.replace

    def full(self: Path, target: Any) -> Any:
        if target == job.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return place(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(FlowCutError, match=r"No space left on device\. All answers are kept in"):
            answer_file(job)
    assert not job.output.exists() and not Path(f"{job.output}.partial").exists()
    assert answer_file(job).asked == 0 and job.output.read_bytes() == whole


def test_a_broken_picture_is_named_and_asked_again_when_mended(job: Job, tmp_path: Path) -> None:
    images = toy_questions.save_pictures(tmp_path / "images", [f"{number}.png" for number in range(3)])
    lines = [
        {"question_id": name, "image": name, "text": "what is shown ?"}
        for name in ("0.png", "gone.png", "../answers.jsonl", "1.png", "half.png", "2.png")
    ]
    (images / "half.png").write_bytes((images / "0.png").read_bytes()[:90])
    file = QuestionFile(toy_questions.write_lines(tmp_path / "q.jsonl", lines))
    broken = replace(job, questions=file, images=images, batch_size=4)
    told: list[Any] = []
    done = answer_file(broken, lambda kind, what: told.append((kind, what)))
    assert [one["question_id"] for one in answers(broken)] == ["0.png", "1.png", "2.png"]
    assert (done.questions, done.answers, len(done.trouble)) == (6, 3, 3)
    assert "gone.png" in done.trouble[0] and "leads out of the images folder" in done.trouble[1]
    assert "half.png is a broken image" in done.trouble[2]
    assert [what for kind, what in told if kind == "trouble"] == done.trouble
    for name in ("half.png", "gone.png"):
        (images / name).write_bytes((images / "0.png").read_bytes())
    again = answer_file(broken)
    assert (again.asked, again.answers, len(again.trouble)) == (3, 5, 1)
    assert [one["question_id"] for one in answers(broken)] == [
        one["image"] for one in lines if ".." not in one["image"]
    ]


def test_a_picture_that_the_processor_refuses_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(processor: Any, mode: str, texts: list[str], visuals: list[Any]) -> Any:
        if any("word1" in text for text in texts):
            raise ValueError("too narrow")
        return inputs_of(processor, mode, texts, visuals)

    monkeypatch.setattr("flowcut.llava_files.asking.inputs_of", picky)
    done = answer_file(replace(job, batch_size=4))
    assert done.answers == 3 and all("(COCO_1.png): too narrow" in message for message in done.trouble)


def test_an_error_of_the_model_ends_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, prepared: Any, handle: Any) -> Any:
        raise RuntimeError("the model is wrong")

    monkeypatch.setattr(Asker, "_answers", wrong)
    with pytest.raises(RuntimeError, match="the model is wrong"):
        answer_file(job)
    with pytest.raises(FlowCutError, match="2 of 2 processes failed: the model is wrong"):
        answer_file(replace(job, processes=2))


def test_numbers_and_folders_that_cannot_be(job: Job, tmp_path: Path) -> None:
    for wrong in ({"batch_size": 0}, {"processes": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            answer_file(replace(job, **wrong))
    with pytest.raises(FileNotFoundError, match="No folder with images"):
        answer_file(replace(job, images=tmp_path / "gone"))


def test_a_part_with_a_line_that_is_no_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0001-000.jsonl").write_text('{"place": 1}\n')
    with pytest.raises(ValueError, match=r"0001-000.jsonl, line 1 is not an answer"):
        list(entries_in(tmp_path / "0001-000.jsonl"))


@pytest.mark.parametrize(
    ("model", "name"),
    [("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"), ("/a/b/", "b"), ("runs/x/checkpoint-500", "x_checkpoint-500")],
)
def test_a_models_name_is_llavas(model: str, name: str) -> None:
    assert name_of(model) == name
