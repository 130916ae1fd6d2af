"""The long run: ``python -m tests.fuzz --cases 10000 --seed 24 --log fuzz.log``; with a log, it goes on."""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch  # noqa: E402
from fuzz_machine import COUNTS, REFUSALS, Machine  # noqa: E402
from fuzz_run import CHUNK, run_chunk  # noqa: E402

torch.set_num_threads(1)
DONE = re.compile(r"^chunk (\d+): (\d+) cases, (\d+) differences", re.MULTILINE)


def main() -> int:
    """Run, log every difference with what led to it, and go on; the exit status says whether there were any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help=f"sequences of calls, in chunks of {CHUNK}")
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk; the next one's is one more")
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"))
    given = parser.parse_args()
    before = DONE.findall(given.log.read_text()) if given.log.exists() else []
    seed, cases, differences = given.seed, 0, 0
    if before:
        last, cases, differences = map(int, before[-1])
        seed = last + 1
    with given.log.open("a") as log:

        def say(text: str) -> None:
            print(text, file=log, flush=True)

        say(f"from seed {seed}, {given.cases} cases, torch {torch.__version__}")
        while cases < given.cases:
            begun, size = time.process_time(), min(CHUNK, given.cases - cases)
            COUNTS.clear()
            REFUSALS.clear()
            try:
                run_chunk(seed, size)
            except Exception:
                differences += 1
                done = "\n  ".join(Machine.last.done if Machine.last is not None else [])
                say(f"DIFFERENCE in chunk {seed} behind\n  {done}\n{traceback.format_exc()}")
            cases += min(size, COUNTS["begin"])
            counts = ", ".join(f"{name} {count}" for name, count in sorted(COUNTS.items()))
            for refusal, count in REFUSALS.items():
                say(f"refused {count} times: {refusal}")
            say(
                f"chunk {seed}: {cases} cases, {differences} differences, {time.process_time() - begun:.0f} s: {counts}"
            )
            seed += 1
    return differences > 0


if __name__ == "__main__":
    sys.exit(main())
