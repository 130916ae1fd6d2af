"""The built-in questions in LLaVA's layout, so that every table can be tried without downloads.

``exist`` becomes POPE, with its three ways of choosing an absent noun as categories; ``read`` becomes TextVQA, its
answer that of all ten humans; ``name``, ``where``, ``color`` and ``shape`` become questions of GQA's file, which nobody
judges here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from flowcut.tasks import TaskSplit

from .benchmarks import BENCHMARKS

SHORT = "\nAnswer the question using a single word or phrase."
CATEGORIES = ("adversarial", "popular", "random")
OPEN = ("name", "where", "color", "shape")


def write_local(split: TaskSplit, folder: Path, limit: int) -> dict[str, int]:
    """Write POPE, TextVQA and GQA files of at most ``limit`` questions each; returns how many each has."""
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    labels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    annotations = []
    present = 0
    for scene in split.scenes:
        for number, question in enumerate(scene.questions):
            name = {"exist": "POPE", "read": "TextVQA"}.get(question.task, "GQA" if question.task in OPEN else "")
            if not name or len(lines[name]) >= limit:
                continue
            picture = folder / BENCHMARKS[name].images / scene.name
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(scene.encoded)
            line = {"question_id": len(lines[name]), "image": scene.name, "text": question.text}
            if name == "POPE":
                category = question.kind if question.kind in CATEGORIES else CATEGORIES[present % 3]
                present += question.kind not in CATEGORIES
                line["category"] = category
                labels[category].append({"image": scene.name, "text": question.text, "label": question.answer.lower()})
            if name == "TextVQA":
                line |= {"question_id": f"{scene.name}-{number}", "text": question.text + SHORT}
                humans = [question.answer] * 10
                annotations.append({"image_id": line["question_id"], "question": question.text, "answers": humans})
            lines[name].append(line)
    for name, written in lines.items():
        save_lines(folder / BENCHMARKS[name].questions, written)
    for category, written in labels.items():
        save_lines(folder / BENCHMARKS["POPE"].annotations / f"coco_pope_{category}.json", written)
    (folder / BENCHMARKS["TextVQA"].annotations).write_text(json.dumps({"data": annotations}))
    return {name: len(written) for name, written in lines.items()}


def save_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A ``.jsonl`` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
