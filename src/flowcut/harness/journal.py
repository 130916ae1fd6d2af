"""Answers on disk as they come, so that a run that was killed goes on where it stopped.

The harness asks a model for all answers at once and writes them at its end. With ``journal=FOLDER`` a model's answers
are asked for and written some at a time; one that is written is not computed again. Every process has a file of its
own and reads all of them at its start, so that any number of processes may go on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK = 8
"""Batches between two writes."""

Ask = Callable[[list[Any]], Sequence[Any]]


class Journal:
    """The answers of one run.

    Args:
        folder: where they are kept; made if needed.
        identity: what answers depend on beside the request: model, method, settings, versions. Answers of another
            identity are not seen.
        rank: number of this process.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(identity, sort_keys=True)
        self.prefix = f"answers-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.path = folder / f"{self.prefix}-{rank}.jsonl"
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")  # ends the half line of a killed process
        self.known = {
            entry["key"]: entry["answer"]
            for entry in entries(folder, self.prefix)
            if "key" in entry and "answer" in entry
        }

    def answering(self, ask: Ask, batch_size: int) -> Ask:
        """The same asking, of what is not known yet and in parts."""

        def answered(requests: list[Any]) -> list[Any]:
            keys = [request_key(request) for request in requests]
            answers = {
                place: self.known[key] for place, key in enumerate(keys) if key is not None and key in self.known
            }
            missing = [place for place in range(len(requests)) if place not in answers]
            self._write([{"asked": len(requests), "known": len(answers)}])
            step = CHUNK * batch_size
            for first in range(0, len(missing), step):
                places = missing[first : first + step]
                said = ask([requests[place] for place in places])
                answers |= dict(zip(places, said, strict=True))
                self._write([{"key": keys[place], "answer": plain(answers[place])} for place in places])
            return [answers[place] for place in range(len(requests))]

        return answered

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._append("".join(json.dumps(line) + "\n" for line in lines))

    def _append(self, text: str) -> None:
        """See to it that it is on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def plain(answer: Any) -> Any:
    """An answer as JSON: a text, or a loss and whether it is the greedy one."""
    text = getattr(answer, "text", answer)
    return list(text) if isinstance(text, tuple) else text


def request_key(request: Any) -> str | None:
    """What tells a request from others, or ``None`` where its answer is drawn at random."""
    told = [argument for argument in request.args if isinstance(argument, (str, int, float, dict))]
    for generation in told:
        if isinstance(generation, dict) and (generation.get("do_sample") or (generation.get("temperature") or 0) > 0):
            return None
    described = [request.request_type, request.task_name, request.doc_id, request.idx, told]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:24]


def entries(folder: Path, prefix: str = "answers-") -> Iterator[dict[str, Any]]:
    """All whole lines of a folder's files; a killed process may leave half of one."""
    for path in sorted(folder.glob(f"{prefix}*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def progress(folder: Path) -> tuple[int, int]:
    """How many answers are written, and how many were asked for since the last start, as far as the files tell."""
    written = asked = known = 0
    for entry in entries(folder):
        written += "answer" in entry
        asked += entry.get("asked", 0)
        known += entry.get("known", 0)
    return written, max(asked - known, written)
