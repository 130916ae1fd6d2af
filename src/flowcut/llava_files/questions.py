"""The questions of a file, one after the other, in the three forms that LLaVA's evaluation scripts read.

``.jsonl`` (POPE, TextVQA, GQA, VQAv2, VizWiz, MME, SEED, MM-Vet, LLaVA-Bench) and MMBench's ``.tsv`` are streamed;
ScienceQA's ``.json`` is one list and read as a whole. Pictures are opened elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from .mmbench import read_rows

IMAGE = "<image>"
CHOICE_PROMPT = {"en": "Answer with the option's letter from the given choices directly.", "cn": "请直接回答选项字母。"}
"""What LLaVA's scripts put behind questions with choices, by language."""

OPTIONS = ("A", "B", "C", "D")
NEW_TOKENS = {".jsonl": 128, ".json": 1024, ".tsv": 1024}
"""Longest answer by the file's ending, as in LLaVA's scripts for it."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        place: the number of its answer in the answer file, from 0.
        row: the number of its entry in the question file, from 0; MMBench's rounds share one.
        text: what is asked, behind the picture.
        visual: the file with its picture or video, inside the images folder; ``None`` where there is none there.
        encoded: the picture itself in base64, where the question file holds it.
        first: fields of the answer in front of its text.
        last: fields behind it.
    """

    place: int
    row: int
    text: str
    visual: str | None = None
    encoded: str | None = None
    first: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"question {self.first['question_id']!r}"


@dataclass(frozen=True)
class QuestionFile:
    """A question file and which of its questions are asked.

    Attributes:
        path: ends in ``.jsonl``, ``.json`` or ``.tsv``.
        language: ``en`` or ``cn``, of the instruction behind MMBench's questions.
        all_rounds: whether MMBench's questions are asked once for every option, the options turned on by one.
        limit: only so many entries from the beginning; ``None`` for all.
        chunks, chunk: into how many pieces of equal length the entries are split, and the number of the one asked.
    """

    path: Path
    language: str = "en"
    all_rounds: bool = False
    limit: int | None = None
    chunks: int = 1
    chunk: int = 0

    def __post_init__(self) -> None:
        """Refuse what no file can be.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another ending, language or chunk.
        """
        if self.path.suffix not in NEW_TOKENS:
            raise ValueError(
                f"{self.path} is no question file: .jsonl (POPE, TextVQA, ...), .json (ScienceQA) and .tsv (MMBench) "
                "are read."
            )
        if not self.path.is_file():
            raise FileNotFoundError(f"No question file found at {str(self.path)!r}.")
        if self.language not in CHOICE_PROMPT:
            raise ValueError(f"The language {self.language!r} is unknown; known: {', '.join(CHOICE_PROMPT)}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}.")
        if self.chunks < 1 or not 0 <= self.chunk < self.chunks:
            raise ValueError(f"Of {self.chunks} chunks, numbers 0 to {self.chunks - 1} exist; got {self.chunk}.")

    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        with self.path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(2**20):
                found.update(block)
        return found.hexdigest()

    def read(self) -> Iterator[Question]:
        """The questions that are asked, in the file's order; places count from 0.

        Raises:
            ValueError: an entry is not of the form that LLaVA's scripts read; its line or number is named.
        """
        chosen = self._entries()
        if self.chunks > 1:
            size = math.ceil(max(1, sum(1 for _ in self._rows())) / self.chunks)
            first = self.chunk * size
            chosen = (one for one in takewhile(lambda one: one.row < first + size, chosen) if one.row >= first)
        for place, question in enumerate(chosen):
            yield Question(**{**vars(question), "place": place})

    def count(self) -> int:
        """How many questions are asked; every one is checked.

        Raises:
            ValueError: see :meth:`read`, or there are none.
        """
        total = sum(1 for _ in self.read())
        if not total and self.chunks == 1:
            raise ValueError(f"{self.path} holds no questions.")
        return total

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """Where each entry stands, and what it is."""
        readers = {".jsonl": lines_of, ".json": entries_of, ".tsv": read_rows}
        for number, entry in enumerate(readers[self.path.suffix](self.path)):
            if self.limit is not None and number >= self.limit:
                return
            yield entry

    def _entries(self) -> Iterator[Question]:
        parse: Callable[[int, Any], Iterator[Question]]
        parse = {".jsonl": from_line, ".json": from_science, ".tsv": self._from_mmbench}[self.path.suffix]
        for row, (where, entry) in enumerate(self._rows()):
            try:
                for question in parse(row, entry):
                    if IMAGE in question.text:
                        raise ValueError(f"its text holds {IMAGE}, which stands for the picture")
                    yield question
            except KeyError as error:
                raise ValueError(f"{self.path}, {where}: it has no {error.args[0]!r}.") from error
            except (TypeError, AttributeError, IndexError, ValueError) as error:
                raise ValueError(f"{self.path}, {where}: {error}.") from error

    def _from_mmbench(self, row: int, entry: dict[str, Any]) -> Iterator[Question]:
        options = list(takewhile(lambda value: value is not None, (entry.get(letter) for letter in OPTIONS)))
        letters = list(OPTIONS[: len(options)])
        for turn in range(len(options) if self.all_rounds else 1):
            asked = "\n".join(
                [
                    *([entry["hint"]] if entry["hint"] is not None else []),
                    str(entry["question"]),
                    *(f"{letter}. {option}" for letter, option in zip(OPTIONS, options, strict=False)),
                ]
            )
            yield Question(
                0,
                row,
                f"{asked}\n{CHOICE_PROMPT[self.language]}",
                encoded=entry["image"],
                first={"question_id": entry["index"], "round_id": turn, "prompt": asked},
                last={"options": list(options), "option_char": list(letters)},
            )
            options, letters = options[1:] + options[:1], letters[1:] + letters[:1]


def lines_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a ``.jsonl`` file, each with its line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: it is not JSON in UTF-8 ({error}).") from error
            if line.strip():
                yield f"line {number}", entry


def entries_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of ScienceQA's list, each with its number."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}).") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list of questions, as ScienceQA's files in LLaVA's form are.")
    yield from ((f"entry {number}", entry) for number, entry in enumerate(entries, start=1))


def from_line(row: int, entry: dict[str, Any]) -> Iterator[Question]:
    """The question of a ``.jsonl`` line; a ``video`` may stand in the place of the ``image``."""
    visual = entry["video"] if "video" in entry else entry["image"]
    text = entry["text"]
    if not isinstance(visual, str) or not isinstance(text, str):
        raise ValueError("its image and its text must be strings")
    yield Question(0, row, text, visual, first={"question_id": entry["question_id"], "prompt": text})


def from_science(row: int, entry: dict[str, Any]) -> Iterator[Question]:
    """The question of a ScienceQA entry, with the instruction that LLaVA's script puts behind it."""
    asked = entry["conversations"][0]["value"].replace(IMAGE, "").strip()
    text = f"{asked}\n{CHOICE_PROMPT['en']}"
    visual = entry.get("image")
    prompt = text if visual is None else f"{IMAGE}\n{text}"
    yield Question(0, row, text, visual, first={"question_id": entry["id"], "prompt": prompt})
