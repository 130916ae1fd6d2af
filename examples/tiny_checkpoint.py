"""Write the tiny random LLaVA of the tests, with a processor, into a folder: something to run without a network.

    python examples/tiny_checkpoint.py runs/tiny
    flowcut run examples/pictures/astronaut.jpg "what is shown?" --model runs/tiny --target-num 9

Its weights are random, so its answers are noise; everything else is as with a real checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tiny_checkpoint import save_checkpoint


def main(folder: Path) -> None:
    """Write the checkpoint into FOLDER."""
    print(f"wrote {save_checkpoint(folder)}")


if __name__ == "__main__":
    typer.run(main)
