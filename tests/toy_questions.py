"""Small question files in every form that LLaVA's evaluation has, with pictures and annotations."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHORT = "\nAnswer the question using a single word or phrase."
CATEGORIES = ("adversarial", "popular", "random")


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """A ``.jsonl`` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What :func:`write_lines` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_pictures(folder: Path, names: Iterable[str]) -> Path:
    """Pictures that differ, of different shapes."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60 + 20 * (number % 3), 70)).save(path)
    return folder


def pope(folder: Path, each: int = 4) -> tuple[Path, Path, Path]:
    """Question file, images and annotations of POPE, ``each`` questions a category."""
    names = [f"COCO_{number}.png" for number in range(each)]
    save_pictures(folder / "val2014", names)
    questions = []
    for category in CATEGORIES:
        labels = [
            {"question_id": number + 1, "image": name, "text": "x", "label": ("no", "yes")[number % 2]}
            for number, name in enumerate(names)
        ]
        write_lines(folder / "coco" / f"coco_pope_{category}.json", labels)
        for number, name in enumerate(names):
            text = f"is word{number} shown ?{SHORT}"
            questions.append({"question_id": len(questions), "image": name, "text": text, "category": category})
    return write_lines(folder / "llava_pope_test.jsonl", questions), folder / "val2014", folder / "coco"


def textvqa(folder: Path) -> tuple[Path, Path, Path]:
    """The same of TextVQA; two questions are about one picture, so that their ids are equal."""
    names = ["a1", "a1", "b2"]
    save_pictures(folder / "train_images", [f"{name}.png" for name in names])
    asked = ["What is word1?", "what is word2?", "What does it say?"]
    questions = [
        {"question_id": name, "image": f"{name}.png", "text": f"{text}\nReference OCR token: x, y{SHORT}"}
        for name, text in zip(names, asked, strict=True)
    ]
    data = [
        {"image_id": name, "question": text, "answers": ["word1"] * 4 + ["two words"] * 6}
        for name, text in zip(names, asked, strict=True)
    ]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    file = write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", questions)
    return file, folder / "train_images", folder / "TextVQA_0.5.1_val.json"


def scienceqa(folder: Path) -> tuple[Path, Path, Path]:
    """The same of ScienceQA: every second problem has a picture."""
    problems, entries = {}, []
    for number in range(4):
        name = str(10 + 3 * number)
        problems[name] = {"answer": number % 2, "choices": ["x", "y"]}
        value = f"Context: N/A\nQuestion: word{number}\nOptions: (A) x (B) y"
        entry: dict[str, Any] = {"id": name, "conversations": [{"from": "human", "value": value}]}
        if number % 2:
            entry["image"] = f"{name}/image.png"
            entry["conversations"][0]["value"] += "\n<image>"
            save_pictures(folder / "images" / "test", [entry["image"]])
        entries.append(entry)
    problems["1"] = {"answer": 0, "choices": ["of", "another", "split"]}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": [one["id"] for one in entries], "train": ["1"]}))
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(entries))
    return folder / "llava_test_CQM-A.json", folder / "images" / "test", folder


def mmbench(folder: Path) -> Path:
    """MMBench's file: three rows with four, two and three options; one cell holds tab, quote and line break."""
    save_pictures(folder, [f"{number}.png" for number in range(3)])
    pictures = [base64.b64encode((folder / f"{number}.png").read_bytes()).decode() for number in range(3)]
    header = ["index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category", "comment"]
    rows = [
        ["241", "Which?", "nan", "one", "2", "three", "four", "A", "c", pictures[0], "s", "l", "nan"],
        ["252", "What?", '"a ""hint""\nover\tlines"', "yes", "no", "", "", "B", "c", pictures[1], "s", "l", ""],
        ["1000241", "Who?", "", "he", "she", "they", "None", "B", "c", pictures[2], "s", "l", ""],
    ]
    file = folder / "mmbench_dev.tsv"
    file.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return file
