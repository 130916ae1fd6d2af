"""Questions about videos, as Table 4 asks them."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import tiny_video
import toy_questions

from flowcut import FlowCut
from flowcut.llava_files.job import Job
from flowcut.llava_files.prompts import OWN
from flowcut.llava_files.questions import QuestionFile
from flowcut.llava_files.run import answer_file

MAKE_CLIP = Path(__file__).parents[2] / "examples" / "make_clip.py"


def test_videos_are_asked_one_by_one_in_the_models_own_prompt(tmp_path: Path) -> None:
    runpy.run_path(str(MAKE_CLIP))["make_clip"](tmp_path / "clip.mp4")
    checkpoint = tiny_video.save_checkpoint(tmp_path / "tiny")
    lines = [{"question_id": number, "video": "clip.mp4", "text": "what is shown ?"} for number in range(2)]
    file = QuestionFile(toy_questions.write_lines(tmp_path / "questions.jsonl", lines))
    job = Job(file, tmp_path / "answers.jsonl", str(checkpoint), tmp_path, FlowCut(target_num=16), device="cpu")
    job = replace(job, mode=OWN, max_new_tokens=2, batch_size=2)
    done = answer_file(job)
    assert (done.answers, done.trouble) == (2, []) and done.visual_tokens is not None and done.visual_tokens > 0
    first, second = toy_questions.read_lines(job.output)
    assert first["text"] == second["text"], "the same question about the same video"
    other = answer_file(replace(job, mode="vicuna_v1", output=tmp_path / "other.jsonl"))
    assert other.answers == 0 and all("one by one, in the model's own prompt" in told for told in other.trouble)
