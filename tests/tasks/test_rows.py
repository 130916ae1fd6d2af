"""The file of finished rows: what is put in comes out, whoever writes and whoever is killed."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import re
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from flowcut.measure.run import Outcome
from flowcut.measure.timing import Seconds
from flowcut.models.costs import Flops
from flowcut.tasks.asking import RowPlan
from flowcut.tasks.metrics import TaskScore
from flowcut.tasks.rows import FILE, Row, RowFile, row_key

IDENTITY: dict[str, Any] = {"model": "some", "split": "test-v1", "questions": 2}


def make_row(method: str, target_num: int | None = None, answers: tuple[str, ...] = ("Yes", "Ja, größer")) -> Row:
    costs = Outcome(
        answer="Yes",
        new_tokens=1,
        seconds=Seconds(0.1, 1 / 3, 0.3, 0.4, 1.2),
        visual_tokens=64,
        visual_tokens_mean=64.5,
        kv_entries=81,
        flops=Flops(1, 2, 3),
    )
    scores = {"exist": TaskScore("exist", 2, 0.5, (0.1, 0.9), {"f1": 2 / 3})}
    return Row(RowPlan(method, target_num), scores, costs, 0.7, list(answers))


def add_rows(folder: Path, method: str, number: int, told: Connection) -> None:
    """Add ``number`` rows, and tell after each how many are there."""
    for count in range(1, number + 1):
        RowFile(folder).add(IDENTITY, make_row(method, count))
        told.send(count)


def start_adding(folder: Path, method: str, number: int) -> tuple[Any, Connection]:
    """A process that adds rows, and where it tells of them."""
    forked = multiprocessing.get_context("fork")  # what this process has loaded need not be loaded again
    here, there = forked.Pipe(duplex=False)
    process = forked.Process(target=add_rows, args=(folder, method, number, there))
    process.start()
    there.close()
    return process, here


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    store = RowFile(tmp_path / "new" / "folder")
    assert store.read() == [] and store.table() == [] and store.find(IDENTITY, RowPlan("uncut")) is None
    row = make_row("flowcut", 64)
    store.add(IDENTITY, row)
    assert store.find(IDENTITY, row.plan) == row and store.table() == [row]
    assert [(one.identity, one.row) for one in store.read()] == [(IDENTITY, row)]


def test_another_model_budget_or_choice_of_positions_is_another_row() -> None:
    plan = RowPlan("flowcut", 64)
    other = {**IDENTITY, "model": "another"}
    plans = [plan, replace(plan, target_num=32), replace(plan, positions="original"), replace(plan, method="random")]
    keys = [row_key(identity, one) for identity in (IDENTITY, other) for one in plans]
    assert len(set(keys)) == len(keys)
    assert row_key(dict(reversed(IDENTITY.items())), plan) == keys[0]


def test_a_row_that_is_measured_again_takes_its_former_place(tmp_path: Path) -> None:
    store = RowFile(tmp_path)
    store.add(IDENTITY, make_row("uncut"), make_row("random", 4))
    store.add(IDENTITY, make_row("uncut", answers=("No", "No")))
    assert [(row.plan.method, row.answers[0]) for row in store.table()] == [("uncut", "No"), ("random", "Yes")]


def test_the_table_has_the_rows_of_one_identity_in_the_order_asked_for(tmp_path: Path) -> None:
    store = RowFile(tmp_path)
    other = {**IDENTITY, "split": "new-v1"}
    store.add(other, make_row("uncut"))
    store.add(IDENTITY, make_row("fastv", 4), make_row("random", 4), make_row("uncut"))
    store.arrange(IDENTITY, [RowPlan("uncut"), RowPlan("random", 4), RowPlan("tome", 4)])
    assert [row.plan.method for row in store.table(IDENTITY)] == ["uncut", "random", "fastv"]
    assert store.table() == store.table(IDENTITY)
    assert [row.plan.method for row in store.table(other)] == ["uncut"]


def test_the_same_rows_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate(("a", "b")):
        monkeypatch.setattr("time.time", lambda number=number: 1e9 + number)
        RowFile(tmp_path / folder).add(IDENTITY, make_row("uncut"), make_row("random", 4))
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    lines = gzip.decompress((tmp_path / "a" / FILE).read_bytes()).decode().splitlines()
    assert [json.loads(line)["row"]["plan"]["method"] for line in lines] == ["uncut", "random"]


def test_two_processes_lose_no_row_of_each_other(tmp_path: Path) -> None:
    started = [start_adding(tmp_path, method, 25) for method in ("fastv", "random")]
    for process, _ in started:
        process.join(timeout=120)
        assert process.exitcode == 0
    plans = {(row.plan.method, row.plan.target_num) for row in RowFile(tmp_path).table()}
    assert plans == {(method, number) for method in ("fastv", "random") for number in range(1, 26)}


def test_a_killed_process_leaves_what_it_had_finished_and_no_lock(tmp_path: Path) -> None:
    for finished in (1, 4, 9):
        process, told = start_adding(tmp_path, f"killed-{finished}", 10**6)
        while told.recv() != finished:
            pass
        process.kill()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
        stored = [row.plan.target_num for row in RowFile(tmp_path).table() if row.plan.method == f"killed-{finished}"]
        assert stored == list(range(1, len(stored) + 1)) and len(stored) >= finished
    RowFile(tmp_path).add(IDENTITY, make_row("uncut"))
    assert RowFile(tmp_path).find(IDENTITY, RowPlan("uncut")) is not None


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowFile(tmp_path)
    store.add(IDENTITY, make_row("uncut"))

    def break_off(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", break_off)
        store.add(IDENTITY, make_row("random", 4))
    assert [row.plan.method for row in store.table()] == ["uncut"]
    store.add(IDENTITY, make_row("random", 4))
    assert [row.plan.method for row in store.table()] == ["uncut", "random"]


@pytest.mark.parametrize(
    "content",
    [b"not compressed", gzip.compress(b"not json\n"), gzip.compress(b'{"plan": {}}\n'), gzip.compress(b"{}")[:-6]],
    ids=["plain", "no json", "no row", "cut short"],
)
def test_a_file_of_something_else_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / FILE)) + ".*another output folder"):
        RowFile(tmp_path).add(IDENTITY, make_row("uncut"))
    assert (tmp_path / FILE).read_bytes() == content
