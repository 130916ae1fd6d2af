"""Write the chosen test scenes as a split that ships with the package."""

from __future__ import annotations

import io
from pathlib import Path

from flowcut.tasks import TaskScene, TaskSplit, write_split

from .testset import TestScene

QUALITY = 82
"""WebP quality of the stored pictures."""


def pack(name: str, chosen: list[TestScene], target: Path) -> TaskSplit:
    """Encode the pictures, and write pictures, masks and questions into one file.

    Args:
        name: the split's name with its version.
        chosen: what `choose` gave.
        target: the .zip file to write.
    """
    scenes = []
    for entry in chosen:
        encoded = io.BytesIO()
        entry.picture.save(encoded, "WEBP", quality=QUALITY, method=6)
        scenes.append(
            TaskScene(
                f"{entry.index:05d}.webp",
                encoded.getvalue(),
                tuple((item.kind, item.name, item.color) for item in entry.scene.items),
                entry.scene.touched,
                entry.questions,
            )
        )
    split = TaskSplit(name, tuple(scenes))
    write_split(split, target)
    return split
