"""Write a tiny random model of the tests, with its processor, into a folder: something to run without a network.

    python examples/tiny_checkpoint.py runs/tiny
    flowcut run examples/pictures/astronaut.jpg "what is shown?" --model runs/tiny --target-num 9

    python examples/tiny_checkpoint.py runs/tiny-video --family video_llava
    python examples/make_clip.py runs/clip.mp4
    flowcut run runs/clip.mp4 "what is shown?" --model runs/tiny-video --target-num 64 --overlay runs/frames.png

The weights are random, so the answers are noise; everything else is as with a real checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import tiny_checkpoint
import tiny_video

FAMILIES = ("llava", *tiny_video.NAMES)


def main(
    folder: Path,
    family: Annotated[str, typer.Option(help=f"One of {', '.join(FAMILIES)}.")] = "llava",
) -> None:
    """Write the checkpoint into FOLDER."""
    if family not in FAMILIES:
        raise typer.BadParameter(f"{family!r} is none of {', '.join(FAMILIES)}.")
    if family == "llava":
        tiny_checkpoint.save_checkpoint(folder)
    else:
        tiny_video.save_checkpoint(folder, family)
    print(f"wrote {folder}")


if __name__ == "__main__":
    typer.run(main)
