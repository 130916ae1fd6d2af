"""Finished rows of an evaluation, all of a folder's in one compressed file.

The file ``rows.jsonl.gz`` has a line for every row: what was measured (model, split, questions) and the row itself with
every answer, as JSON; ``zcat`` shows it. It is written as a whole beside the old one and then takes its place, under
a lock, so that a killed process leaves the rows that were finished, and two processes add to the same file. The same
rows in the same order give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..measure.run import Outcome
from ..measure.timing import Seconds
from ..models.costs import Flops
from .asking import RowPlan
from .metrics import NORMAL_QUANTILE, TaskScore

FILE = "rows.jsonl.gz"
LOCK = ".rows.lock"

Identity = dict[str, Any]
"""What rows must share to stand in one table: model, split, choice and number of questions, dtype, device."""


@dataclass(frozen=True)
class Row:
    """A finished row.

    Attributes:
        plan: what was done.
        scores: for every task.
        costs: of one prompt, the first question asked: tokens, FLOPs, and median seconds over ``COST_REPEATS`` runs.
        uncut_seconds: median prefill seconds of the uncut model, measured in turns with this row's.
        answers: what was said, question by question.
    """

    plan: RowPlan
    scores: dict[str, TaskScore]
    costs: Outcome
    uncut_seconds: float
    answers: list[str]

    @property
    def average(self) -> float:
        """Mean accuracy over the tasks, 0 to 1."""
        return float(np.mean([one.accuracy for one in self.scores.values()]))

    @property
    def average_interval(self) -> tuple[float, float]:
        """95% interval of the average: the tasks' questions are independent draws, their number is large (normal)."""
        shares = [(one.accuracy, one.questions) for one in self.scores.values()]
        spread = float(np.sqrt(sum(share * (1 - share) / total for share, total in shares))) / len(shares)
        half = NORMAL_QUANTILE * spread
        return max(0.0, self.average - half), min(1.0, self.average + half)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {
            "plan": asdict(self.plan),
            "average": self.average,
            "scores": {task: asdict(one) for task, one in self.scores.items()},
            "costs": self.costs.as_dict(),
            "uncut_prefill_seconds": self.uncut_seconds,
            "answers": self.answers,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Row:
        """Read what :meth:`as_dict` wrote."""
        costs = dict(stored["costs"])
        costs["seconds"] = Seconds(**costs["seconds"])
        costs["flops"] = Flops(**{field.name: costs["flops"][field.name] for field in fields(Flops)})
        scores = {
            task: TaskScore(**{**one, "interval": tuple(one["interval"])}) for task, one in stored["scores"].items()
        }
        plan = RowPlan(**stored["plan"])
        return cls(plan, scores, Outcome(**costs), stored["uncut_prefill_seconds"], stored["answers"])


def row_key(identity: Identity, plan: RowPlan) -> str:
    """A row's name in its file: another model, split, choice of questions or method gives another one."""
    described = json.dumps([identity, asdict(plan)], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StoredRow:
    """A row and what it was measured on."""

    identity: Identity
    row: Row

    @property
    def key(self) -> str:
        """See :func:`row_key`."""
        return row_key(self.identity, self.row.plan)


class RowFile:
    """The finished rows of an output folder.

    Args:
        folder: the folder; it is made when the first row is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    def read(self) -> list[StoredRow]:
        """All rows, in the file's order; none where there is no file.

        Raises:
            ValueError: the file is not one of rows.
        """
        if not self.path.is_file():
            return []
        try:
            lines = gzip.decompress(self.path.read_bytes()).decode("utf-8").splitlines()
            found = [json.loads(line) for line in lines]
            return [StoredRow(one["identity"], Row.from_dict(one["row"])) for one in found]
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} does not hold rows of an evaluation as this version writes them ({error!r}); "
                "move it away to measure anew, or choose another output folder."
            ) from error

    def find(self, identity: Identity, plan: RowPlan) -> Row | None:
        """A finished row, if there is one."""
        key = row_key(identity, plan)
        return next((stored.row for stored in self.read() if stored.key == key), None)

    def table(self, identity: Identity | None = None) -> list[Row]:
        """The rows of one table, in the file's order: those of ``identity``, or of the first row in the file."""
        stored = self.read()
        wanted = stored[0].identity if identity is None and stored else identity
        return [one.row for one in stored if one.identity == wanted]

    def add(self, identity: Identity, *rows: Row) -> None:
        """Keep finished rows, behind those that are there; one of the same key takes the place of its former."""
        with self._locked():
            kept = {stored.key: stored for stored in self.read()}
            for row in rows:
                kept[row_key(identity, row.plan)] = StoredRow(identity, row)
            self._write(list(kept.values()))

    def arrange(self, identity: Identity, plans: Sequence[RowPlan]) -> None:
        """Put the rows of ``identity`` first: those of ``plans`` in their order, then the others."""
        places = {row_key(identity, plan): place for place, plan in enumerate(plans)}
        with self._locked():
            stored = self.read()
            ordered = sorted(stored, key=lambda one: (one.identity != identity, places.get(one.key, len(places))))
            if [one.key for one in ordered] != [one.key for one in stored]:
                self._write(ordered)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes while the block runs; a killed process gives the lock back."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            yield

    def _write(self, rows: Sequence[StoredRow]) -> None:
        """The whole file, there at once or not at all."""
        lines = [json.dumps({"identity": one.identity, "row": one.row.as_dict()}) + "\n" for one in rows]
        partial = self.path.with_name(f"{FILE}.partial")
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            file.write("".join(lines).encode("utf-8"))
        partial.replace(self.path)
