"""Whether memory grows while a long question file is answered: resident memory after every 500 questions.

    python examples/tiny_checkpoint.py runs/tiny
    python benchmarks/streaming.py runs/tiny --questions 5000

The model is tiny and random, the pictures are noise, so that what grows is flowcut's own.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from flowcut import FlowCut
from flowcut.llava_files.job import Job
from flowcut.llava_files.questions import QuestionFile
from flowcut.llava_files.run import answer_file

PICTURES = 50


def resident() -> float:
    """Resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(
    model: str,
    questions: Annotated[int, typer.Option(help="So many.")] = 5000,
    batch_size: Annotated[int, typer.Option(help="In one pass.")] = 8,
    every: Annotated[int, typer.Option(help="Questions between two looks.")] = 500,
) -> None:
    """Answer synthetic questions of MODEL and print the memory as JSON."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(PICTURES):
            noise = random.integers(0, 256, (200 + number, 240, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.jpg")
        with (folder / "questions.jsonl").open("w") as file:
            for number in range(questions):
                text = f"what is word{number % 97} shown ?"
                file.write(
                    json.dumps({"question_id": number, "image": f"{number % PICTURES}.jpg", "text": text}) + "\n"
                )
        seen: list[tuple[int, float]] = []
        done = 0

        def report(kind: str, what: Any) -> None:
            nonlocal done
            done += what
            if done >= len(seen) * every:
                seen.append((done, round(resident(), 1)))

        file = QuestionFile(folder / "questions.jsonl")
        method = FlowCut(target_num=9)
        job = Job(file, folder / "answers.jsonl", model, folder, method, max_new_tokens=2, batch_size=batch_size)
        summary = answer_file(job, report)
    print(json.dumps({"answers": summary.answers, "seconds": round(summary.seconds, 1), "mib_after": seen}))


if __name__ == "__main__":
    typer.run(main)
