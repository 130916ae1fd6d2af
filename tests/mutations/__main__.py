"""Put every fault into a copy of the package and see that its tests fail: ``python -m tests.mutations``.

It forks (POSIX), so that torch and transformers are imported once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent)]

from faults import FAULTS, Fault  # noqa: E402


def main() -> int:
    """Run the faults asked for, or all; the exit status says whether every one was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="words in the names of faults; all by default")
    parser.add_argument("--table", type=Path, help="write the results as a table in Markdown")
    given = parser.parse_args()
    chosen = [fault for fault in FAULTS if not given.names or any(word in fault.name for word in given.names)]
    import_the_heavy_ones()
    caught, rows = 0, []
    for fault in chosen:
        begun = time.monotonic()
        found = is_caught(fault)
        caught += found
        verdict = "caught" if found else "NOT CAUGHT"
        print(f"{verdict}: {fault.name} ({time.monotonic() - begun:.0f} s)", flush=True)
        rows.append(f"| {fault.name} | `{fault.file}` | `{fault.tests[0]}` | {verdict} |")
    print(f"{caught} of {len(chosen)} faults are caught")
    if given.table is not None:
        given.table.write_text("\n".join(["| fault | in | noticed by | |", "|---|---|---|---|", *rows]) + "\n")
    return caught < len(chosen)


def import_the_heavy_ones() -> None:
    """What every run of tests imports, but for the package itself."""
    import pytest  # noqa: F401
    import torch
    import transformers.models.clip.modeling_clip
    import transformers.models.llama.modeling_llama
    import transformers.models.llava.modeling_llava  # noqa: F401

    torch.set_num_threads(1)
    assert "flowcut" not in sys.modules


def is_caught(fault: Fault) -> bool:
    """Whether the fault's tests fail on a copy of the source that has it."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "flowcut"
        shutil.copytree(ROOT / "src" / "flowcut", package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / fault.file
        text = file.read_text()
        assert text.count(fault.old) == 1, f"{fault.name}: its text is no longer there once"
        file.write_text(text.replace(fault.old, fault.new))
        child = os.fork()
        if not child:
            os._exit(run_tests(folder, fault.tests))
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # 1: tests failed; 2: a fault may break the import; anything else says nothing about the fault.
    assert code in (0, 1), f"pytest ended with {code} for {fault.name!r}"
    return code == 1


def run_tests(folder: str, tests: tuple[str, ...]) -> int:
    """In a process of its own: the tests against the package in ``folder``."""
    import pytest

    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = int(pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *tests]))
    import flowcut

    assert flowcut.__file__.startswith(folder), flowcut.__file__
    return code


if __name__ == "__main__":
    sys.exit(main())
