"""The long run: ``python -m tests.fuzz --cases 10000 --seed 24 --log fuzz.log``."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch
from fuzz_machine import COUNTS, REFUSALS, Machine
from fuzz_run import CHUNK, run_chunk

torch.set_num_threads(1)


def main() -> int:
    """Run, log every difference with what led to it, and go on; the exit status says whether there were any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="sequences of calls, in chunks of %d" % CHUNK)
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk; the next one's is one more")
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"))
    given = parser.parse_args()
    differences, begun, chunk, cases = 0, time.monotonic(), 0, 0
    with given.log.open("a") as log:
        print(f"seed {given.seed}, {given.cases} cases, torch {torch.__version__}", file=log, flush=True)
        while cases < given.cases:
            seed = given.seed + chunk
            before = COUNTS["begin"]
            try:
                run_chunk(seed, min(CHUNK, given.cases - cases))
            except Exception:
                differences += 1
                done = "\n  ".join(Machine.last.done if Machine.last is not None else [])
                print(f"DIFFERENCE in chunk {seed} behind\n  {done}\n{traceback.format_exc()}", file=log, flush=True)
            cases += max(COUNTS["begin"] - before, 1)
            chunk += 1
            spent = time.monotonic() - begun
            print(f"chunk {seed}: {cases} cases, {differences} differences, {spent:.0f} s", file=log, flush=True)
        for refusal, count in REFUSALS.most_common():
            print(f"refused {count} times: {refusal}", file=log)
        print("rules: " + ", ".join(f"{name} {count}" for name, count in COUNTS.most_common()), file=log, flush=True)
    return differences > 0


if __name__ == "__main__":
    sys.exit(main())
