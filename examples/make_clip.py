"""Make a short video without a network: a window that moves over one of the example pictures.

python examples/make_clip.py runs/clip.mp4
flowcut run runs/clip.mp4 "what is shown?" --model ... --overlay runs/frames.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer
from PIL import Image

PICTURE = Path(__file__).parent / "pictures" / "astronaut.jpg"


def make_clip(path: Path, picture: Path = PICTURE, frames: int = 24, width: int = 160, height: int = 120) -> Path:
    """Write ``frames`` frames of ``width`` by ``height`` pixels, twelve a second, into ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as opened:
        whole = opened.convert("RGB").resize((2 * width, 2 * height))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for progress in np.linspace(0.0, 1.0, frames):
            left, top = round(progress * width), round(progress * height)
            window = np.asarray(whole.crop((left, top, left + width, top + height)))
            for packet in stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def main(
    path: Annotated[Path, typer.Argument(help="The video to write, such as clip.mp4.")],
    picture: Annotated[Path, typer.Option(help="What the window moves over.")] = PICTURE,
    frames: Annotated[int, typer.Option(min=1)] = 24,
) -> None:
    """Write the clip into PATH."""
    print(f"wrote {make_clip(path, picture, frames)}")


if __name__ == "__main__":
    typer.run(main)
