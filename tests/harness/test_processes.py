"""Rows in processes of their own: several, killed ones, a full disk; through ``flowcut eval --harness lmms-eval``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_harness
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.harness import journal, running
from flowcut.harness.exporting import answers_in_order

tiny_harness.require_lmms_eval()

GROUP = "flowcut_photo_v2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and tasks."""
    folder = tmp_path_factory.mktemp("harness")
    tiny_harness.save_llava(folder / "llava")
    tiny_harness.write_tasks(folder / "tasks")
    return folder


def evaluate(place: Path, output: Path, *options: Any, methods: str = "none,flowcut") -> Any:
    """Call the command."""
    given = {
        "--harness": "lmms-eval",
        "--include-path": place / "tasks",
        "--tasks": GROUP,
        "--methods": methods,
        "--target-num": 9,
        "--model": place / "llava",
        "--output": output,
        "--device": "cpu",
        "--batch-size": 1,
    }
    words = [str(word) for name, value in given.items() for word in (name, value)]
    return CliRunner().invoke(app, ["eval", *words, *map(str, options), "--json"])


def answers(place: Path, output: Path, label: str) -> list[str]:
    """What a finished row answered, in the order of ``flowcut eval``."""
    (folder,) = (output / "rows").glob(f"{label}-*")
    done = json.loads((folder / "done.json").read_text())
    said = {}
    for task, name in done["samples"].items():
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        said[task] = {line["doc_id"]: line["filtered_resps"] for line in lines}
    return answers_in_order(place / "tasks", said)


def wrap_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run ``code`` in front of every worker of a single process."""
    popen = subprocess.Popen
    run = "import sys; from pathlib import Path; from flowcut.harness import journal, worker"

    def wrapped(command: list[str], **options: Any) -> Any:
        if command[1:3] == ["-m", "flowcut.harness.worker"]:
            command = [command[0], "-c", f"{run}\n{code}\nworker.main(Path(sys.argv[1]))", command[3]]
        return popen(command, **options)

    monkeypatch.setattr(running.subprocess, "Popen", wrapped)


KILLED = """
import os
journal.CHUNK = 1
write = journal.Journal._write
def once_too_often(self, lines):
    write(self, lines)
    if journal.progress(self.path.parent)[0] >= 4:
        os.kill(os.getpid(), 9)
journal.Journal._write = once_too_often
"""


def test_a_killed_row_goes_on_and_two_processes_give_the_answers_of_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        wrap_worker(patched, KILLED)
        killed = evaluate(place, tmp_path / "one", methods="none")
    assert killed.exit_code == 1 and "killed by signal 9" in killed.stderr and "Not finished: none" in killed.stderr
    (folder,) = (tmp_path / "one" / "rows").iterdir()
    assert journal.progress(folder / "answers")[0] == 4
    done = evaluate(place, tmp_path / "one")
    assert done.exit_code == 0, done.stderr
    keys = [entry["key"] for entry in journal.entries(folder / "answers") if "key" in entry]
    assert len(keys) == len(set(keys)) == tiny_harness.LIMIT, "nothing was lost, nothing was answered twice"
    told = json.loads(done.stdout)
    assert [row["row"] for row in told["rows"]] == ["none", "flowcut 9"] and set(told["efficiency"]) == {
        "none",
        "flowcut 9",
    }
    several = evaluate(place, tmp_path / "two", "--processes", 2, "--batch-size", 4)
    assert several.exit_code == 0, several.stderr
    for label in ("none", "flowcut-9"):
        assert answers(place, tmp_path / "two", label) == answers(place, tmp_path / "one", label)
    report = json.loads(several.stdout)["efficiency"]["flowcut 9"]
    assert report["environment"]["processes"] == 2
    counted = report["totals"]["questions"]
    assert 0 < counted < tiny_harness.LIMIT, "the first call of each process is left out, padding is not counted"
    again = evaluate(place, tmp_path / "two", "--processes", 2, "--batch-size", 4)
    assert again.exit_code == 0 and json.loads(again.stdout) == json.loads(several.stdout)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_ends_in_an_error_and_the_row_goes_on_when_there_is_room(place: Path, small_disk: Path) -> None:
    full = evaluate(place, small_disk / "out", methods="none")
    assert full.exit_code == 1 and "is full" in full.stderr and "Not finished: none" in full.stderr
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    done = evaluate(place, small_disk / "out", methods="none")
    assert done.exit_code == 0, done.stderr
    assert len(answers(place, small_disk / "out", "none")) == tiny_harness.LIMIT
