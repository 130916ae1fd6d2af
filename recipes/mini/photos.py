"""The split of real photographs: the sample pictures that ship, with questions written by hand (``photos.json``)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flowcut.tasks import TaskQuestion, TaskScene, TaskSplit, write_split

from .scene import GRID, SIDE

QUESTIONS = Path(__file__).with_name("photos.json")
PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
QUALITY = 90
"""WebP quality of the stored pictures."""


def pack_photos(name: str, target: Path) -> TaskSplit:
    """Write the photographs' middle squares and their questions into one file.

    No masks: nobody has marked which patches the questions are about, so that the oracle means nothing here.

    Args:
        name: the split's name with its version.
        target: the .zip file to write.
    """
    scenes = []
    for picture, asked in sorted(json.loads(QUESTIONS.read_text(encoding="utf-8")).items()):
        with Image.open(PICTURES / f"{picture}.jpg") as stored:
            square = ImageOps.fit(stored.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
        encoded = io.BytesIO()
        square.save(encoded, "WEBP", quality=QUALITY, method=6)
        questions = tuple(TaskQuestion(task, text, answer) for task, text, answer in asked)
        scenes.append(
            TaskScene(f"{picture}.webp", encoded.getvalue(), (), np.zeros((0, GRID, GRID), np.bool_), questions)
        )
    split = TaskSplit(name, tuple(scenes))
    write_split(split, target)
    return split
