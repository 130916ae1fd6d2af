"""Video-LLaVA's question files as ``flowcut answer`` reads them, and its answers as the GPT judge reads them."""

from __future__ import annotations

import json
from pathlib import Path

from flowcut.inputs.clips import SUFFIXES


def to_lines(questions: Path, videos: Path, written: Path) -> Path:
    """A ``.jsonl`` file of the questions in ``test_q.json`` whose video is there; Video-LLaVA leaves out the others."""
    there = {path.stem: path.name for path in sorted(videos.iterdir()) if path.suffix.lower() in SUFFIXES}
    written.parent.mkdir(parents=True, exist_ok=True)
    with written.open("w") as file:
        for number, one in enumerate(json.loads(questions.read_text())):
            name = there.get(str(one["video_name"]))
            if name is not None:
                line = {"question_id": one["question_id"], "video": name, "text": one["question"], "number": number}
                file.write(json.dumps(line) + "\n")
    return written


def to_judge(answers: Path, lines: Path, annotations: Path, written: Path) -> Path:
    """The answers beside the right ones (``test_a.json``), as Video-LLaVA's GPT judge takes them."""
    right = json.loads(annotations.read_text())
    with answers.open() as said, lines.open() as asked, written.open("w") as file:
        for answer, line in zip(map(json.loads, said), map(json.loads, asked), strict=True):
            judged = {
                "id": line["question_id"],
                "question": line["text"],
                "answer": right[line["number"]]["answer"],
                "pred": answer["text"],
            }
            file.write(json.dumps(judged) + "\n")
    return written
