"""Answers on their way: a folder beside the answer file, in which every process of every run has a file of its own.

``answers.jsonl.parts`` holds ``run.json`` (what is asked, and how) and ``0001-000.jsonl`` (run, process). A file gets a
line for every answer, behind the line before; what a killed process left of its last line is passed over. So a run that
was ended by anything goes on with what is missing, with any number of processes, and :meth:`Parts.merge` writes the
answers in the questions' order, each once.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ..errors import FlowCutError

Identity = dict[str, Any]
"""What a run must share with the one it goes on: questions, model, method, prompt, dtype."""


@dataclass(frozen=True)
class Entry:
    """One answer, and what it cost.

    Attributes:
        place: of the question.
        answer: the line of the answer file.
        seconds: its share of the time that its batch took, pictures and prompts included.
        visual_tokens: those that entered the language model; ``None`` without a picture, or uncut.
    """

    place: int
    answer: dict[str, Any]
    seconds: float
    visual_tokens: int | None = None


class PartFile:
    """One process' file, open for writing in a ``with`` block.

    Args:
        path: there is none yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> PartFile:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def add(self, entries: list[Entry]) -> None:
        """Write answers through to the disk.

        Raises:
            FlowCutError: they could not be written, as on a full disk.
        """
        data = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)
        left = data.encode("utf-8", errors="surrogatepass")
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            raise FlowCutError(
                f"{self.path} could not be written: {error.strerror}. All answers before are kept; make room and run "
                "the same command again."
            ) from error


class Parts:
    """The folder beside an answer file.

    Args:
        output: the answer file.
        identity: see :data:`Identity`.
        questions: how many there are.
    """

    def __init__(self, output: Path, identity: Identity, questions: int) -> None:
        self.output = output
        self.identity = identity
        self.questions = questions
        self.folder = output.with_name(f"{output.name}.parts")
        self.summary = output.with_name(f"{output.name}.run.json")

    def finished(self) -> dict[str, Any] | None:
        """What :meth:`close` wrote about a finished run like this one; ``None`` where there is still work.

        Raises:
            ValueError: the answer file is that of another run, or it is not known of which.
        """
        if not self.output.exists():
            return None
        if self.summary.is_file():
            stored: dict[str, Any] = json.loads(self.summary.read_text())
            self._check(stored["identity"], self.output)
            shutil.rmtree(self.folder, ignore_errors=True)  # where a run was ended in front of its last step
            return stored
        if self.folder.is_dir():
            return None
        raise ValueError(
            f"{self.output} is there already, and nothing beside it says how it was made. Choose another --output."
        )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The folder, made where it is missing, is this process' while the block runs.

        Raises:
            ValueError: it was begun by another run.
            FlowCutError: another process is at work in it, or it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock", timeout=0):
                described = self.folder / "run.json"
                if any(path.stat().st_size for path in self.files()):
                    self._check(json.loads(described.read_text())["identity"], self.folder)
                else:
                    written_whole(described, json.dumps({"identity": self.identity}, indent=1) + "\n")
                yield
        except Timeout as error:
            raise FlowCutError(
                f"Another process is writing {self.output}. Wait for it, or choose another --output."
            ) from error

    def _check(self, found: Identity, where: Path) -> None:
        different = [name for name in self.identity if found.get(name) != self.identity[name]]
        if different:
            told = "; ".join(f"{name}: there {found.get(name)!r}, here {self.identity[name]!r}" for name in different)
            raise ValueError(f"{where} was made by another run ({told}). Choose another --output, or move it away.")

    def files(self) -> list[Path]:
        """The processes' files, in the order in which they were begun."""
        return sorted(self.folder.glob("*-*.jsonl"))

    def next_run(self) -> int:
        """A number that no file has yet."""
        return 1 + max((int(path.name.split("-")[0]) for path in self.files()), default=0)

    def part(self, run: int, process: int) -> PartFile:
        """The file of one process of a run."""
        return PartFile(self.folder / f"{run:04}-{process:03}.jsonl")

    def missing(self) -> bytearray:
        """1 for every question that has no answer yet."""
        missing = bytearray([1]) * self.questions
        for path in self.files():
            for entry in entries_in(path):
                missing[entry.place] = 0
        return missing

    def merged(self) -> Iterator[Entry]:
        """All answers in the questions' order, each once."""
        last = -1
        for entry in heapq.merge(*[entries_in(path) for path in self.files()], key=lambda entry: entry.place):
            if entry.place != last:
                yield entry
            last = entry.place

    def merge(self) -> dict[str, Any]:
        """Write the answer file, which is there at once or not at all; returns the sums of what the answers cost.

        Raises:
            FlowCutError: it could not be written; the parts stay.
        """
        partial = self.output.with_name(f"{self.output.name}.partial")
        sums: dict[str, Any] = {"answers": 0, "seconds": 0.0, "pictures_cut": 0, "visual_tokens": 0}
        try:
            with partial.open("w", encoding="utf-8", errors="surrogatepass") as file:
                for entry in self.merged():
                    file.write(json.dumps(entry.answer) + "\n")
                    sums["answers"] += 1
                    sums["seconds"] += entry.seconds
                    sums["pictures_cut"] += entry.visual_tokens is not None
                    sums["visual_tokens"] += entry.visual_tokens or 0
            partial.replace(self.output)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise FlowCutError(
                f"{self.output} could not be written: {error.strerror}. All answers are kept in {self.folder}; make "
                "room and run the same command again."
            ) from error
        return sums

    def close(self, told: dict[str, Any]) -> None:
        """Write beside the answer file how it was made, and remove the folder: every question has its answer."""
        written_whole(self.summary, json.dumps({"identity": self.identity, **told}, indent=1) + "\n")
        shutil.rmtree(self.folder, ignore_errors=True)  # its lock is still held, which some systems mind


def written_whole(path: Path, text: str) -> None:
    """Write a file that is there at once or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def entries_in(path: Path) -> Iterator[Entry]:
    """The answers in a part, but for a last line that is not finished.

    Raises:
        ValueError: another line is not an answer.
    """
    with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield Entry(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not an answer ({error}); move the file away.") from error
