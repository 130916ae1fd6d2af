"""Running rows in processes of their own, one after the other, each from where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .journal import progress
from .rows import DONE, HarnessRow
from .worker import ROW

LOG = "log.txt"
POLL_SECONDS = 0.5
FULL = 2**16
"""Bytes; a disk with fewer left is told to be full."""

Report = Callable[[int, int], None]
"""Called with how many answers are there, and how many are wanted as far as is known."""


class RowFailed(Exception):
    """A row that did not come to its end; the message says why, and where its log is."""


def is_done(row: HarnessRow, output: Path) -> bool:
    """Whether a row is finished, its files there."""
    folder = row.folder(output)
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        return all((folder / name).is_file() for name in (done["results"], *done["samples"].values()))
    except (OSError, ValueError, KeyError):
        return False


def run_in_processes(row: HarnessRow, output: Path, processes: int, report: Report = lambda done, of: None) -> None:
    """Run a row until it is finished.

    Args:
        row: what to run.
        output: the table's folder.
        processes: how many share its questions; each takes a device of its own where there are CUDA devices.
        report: see :data:`Report`; called about twice a second.

    Raises:
        RowFailed: a process ended with an error, or was killed. What was answered is kept.
        OSError: the row's folder can't be written.
    """
    folder = row.folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ROW).write_text(json.dumps(row.identity, indent=1) + "\n", encoding="utf-8")
    for left in (folder / "efficiency").glob("efficiency-*.json"):
        left.unlink()
    command = [sys.executable, "-m", f"{__package__}.worker", str(folder)]
    if processes > 1:
        command[1:1] = launcher(processes)
    with (folder / LOG).open("ab") as log:
        started = log.tell()
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(row), start_new_session=True
        )
        try:
            while child.poll() is None:
                report(*progress(folder / "answers"))
                time.sleep(POLL_SECONDS)
        finally:
            end_group(child)
    report(*progress(folder / "answers"))
    if child.returncode or not is_done(row, output):
        raise RowFailed(reason(folder / LOG, started, child.returncode))


def launcher(processes: int) -> list[str]:
    """The words behind ``python`` that start several processes on this machine.

    Their meeting place is fixed: the kind that torch makes by itself (``--standalone``) gives a run up when a busy
    machine is late with a sign of life.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"--nnodes": 1, "--nproc_per_node": processes, "--master_addr": "127.0.0.1", "--master_port": port}
    return ["-m", "torch.distributed.run", *(str(word) for name, value in given.items() for word in (name, value))]


def environment(row: HarnessRow) -> dict[str, str]:
    """The environment of a row's processes; on a CPU accelerate has to be told before it starts."""
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if row.settings.device == "cpu" else {}
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", **on_cpu}


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a row's processes."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def reason(log: Path, started: int, status: int) -> str:
    """Why a row failed: our own line in its log, else how it ended."""
    lines = log.read_bytes()[started:].decode("utf-8", errors="replace").splitlines()
    ours = [line for line in lines if line.startswith("flowcut: ")]
    if ours:
        told = ours[0].removeprefix("flowcut: ")
    elif status < 0:
        told = f"killed by signal {-status}"
    else:
        last = next((line for line in reversed(lines) if line.strip()), "nothing was printed")
        told = f"ended with status {status}: {last.strip()[:300]}"
    if shutil.disk_usage(log.parent).free < FULL:
        told = f"the disk that holds {log.parent} is full; {told}"
    return f"{told} (log: {log}). The same command goes on from here: what was answered is kept."
