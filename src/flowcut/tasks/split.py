"""A fixed split of scenes and questions in one file, and how it is read and written."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TASKS = ("exist", "name", "where", "count", "color", "shape", "read")
"""Names of the built-in tasks, in the order of every table."""

GRID = 24
"""Patches along each side of a scene, for the masks."""

_INDEX = "split.json"
_FORMAT = 1
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # so that the same split always gives the same file


@dataclass(frozen=True)
class TaskQuestion:
    """One question about one scene.

    Attributes:
        task: one of `TASKS`.
        text: what is asked.
        answer: what is right.
        about: indices of the scene's items that the answer depends on; empty where something is absent.
        kind: for `exist` how the noun was chosen: present, random, popular or adversarial; else "".
    """

    task: str
    text: str
    answer: str
    about: tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class TaskScene:
    """One picture with its questions.

    Attributes:
        name: the picture's name in the file.
        encoded: the picture as it is stored.
        items: what it shows: for each item its kind ("noun", "shape", "word"), its name and its colour or "".
        touched: [items, 24, 24] bool, the patches in which each item is visible; no items where nobody marked any.
        questions: what is asked about it.
    """

    name: str
    encoded: bytes
    items: tuple[tuple[str, str, str], ...]
    touched: NDArray[np.bool_]
    questions: tuple[TaskQuestion, ...]

    def picture(self) -> Image.Image:
        """The picture, RGB, 336 x 336."""
        with Image.open(io.BytesIO(self.encoded)) as stored:
            return stored.convert("RGB")

    def patches(self, question: TaskQuestion) -> NDArray[np.bool_]:
        """[24, 24] bool: where anything is visible that the question is about."""
        return np.asarray(self.touched[list(question.about)].any(axis=0), np.bool_)


@dataclass(frozen=True)
class TaskSplit:
    """All scenes of a split.

    Attributes:
        name: which split it is, with its version.
        scenes: its scenes in fixed order.
    """

    name: str
    scenes: tuple[TaskScene, ...]

    def questions(self, task: str) -> Iterator[tuple[TaskScene, TaskQuestion]]:
        """The questions of one task with their scenes, in fixed order."""
        for scene in self.scenes:
            for question in scene.questions:
                if question.task == task:
                    yield scene, question


def load_split(name: str = "test-v1") -> TaskSplit:
    """Read a split that ships with the package.

    Args:
        name: ``test-v1``: rendered scenes; ``new-v1``: rendered scenes with held-out cut-outs, for nouns that have any;
            ``photo-v2``: real photographs.

    Raises:
        FileNotFoundError: there is no such split; the message names those there are.
    """
    folder = resources.files(__package__) / "data"
    available = sorted(_stem(entry) for entry in folder.iterdir() if entry.name.endswith(".zip"))
    if name not in available:
        known = ", ".join(available)
        raise FileNotFoundError(f"no split {name!r} ships with this package; there are: {known}")
    with (folder / f"{name}.zip").open("rb") as file:
        return read_split(file, name)


def read_split(file: IO[bytes], name: str) -> TaskSplit:
    """Read what `write_split` wrote.

    Raises:
        ValueError: the file was written in another format.
    """
    with zipfile.ZipFile(file) as archive:
        index = json.loads(archive.read(_INDEX))
        if index["format"] != _FORMAT:
            raise ValueError(f"split {name!r} has format {index['format']}, this version reads {_FORMAT}")
        scenes = []
        for entry in index["scenes"]:
            items = tuple((kind, thing, color) for kind, thing, color in entry["items"])
            packed = np.frombuffer(bytes.fromhex(entry["touched"]), np.uint8).reshape(len(items), GRID * GRID // 8)
            touched = np.unpackbits(packed, axis=1).astype(bool)
            questions = tuple(
                TaskQuestion(task, text, answer, tuple(about), kind)
                for task, text, answer, about, kind in entry["questions"]
            )
            masks = touched.reshape(len(items), GRID, GRID)
            scenes.append(TaskScene(entry["name"], archive.read(entry["name"]), items, masks, questions))
    return TaskSplit(name, tuple(scenes))


def write_split(split: TaskSplit, path: Path) -> None:
    """Write a split as one file; the same split gives the same bytes."""
    entries = [
        {
            "name": scene.name,
            "items": scene.items,
            "touched": np.packbits(scene.touched.reshape(len(scene.items), GRID * GRID), axis=1).tobytes().hex(),
            "questions": [[q.task, q.text, q.answer, q.about, q.kind] for q in scene.questions],
        }
        for scene in split.scenes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for scene in split.scenes:
            archive.writestr(zipfile.ZipInfo(scene.name, _FIXED_TIME), scene.encoded)
        index = json.dumps({"format": _FORMAT, "scenes": entries}, separators=(",", ":"))
        archive.writestr(zipfile.ZipInfo(_INDEX, _FIXED_TIME), index, zipfile.ZIP_DEFLATED)


def _stem(entry: Traversable) -> str:
    return entry.name.removesuffix(".zip")
