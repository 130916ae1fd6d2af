"""The photographs that ship are packed from the sample pictures and the questions beside the recipe."""

from __future__ import annotations

from pathlib import Path

from flowcut.tasks import load_split
from recipes.mini.photos import pack_photos


def test_the_shipped_photographs_are_these(tmp_path: Path) -> None:
    made, shipped = pack_photos("photo-v1", tmp_path / "photo-v1.zip"), load_split("photo-v1")
    assert [(scene.name, scene.questions) for scene in made.scenes] == [
        (scene.name, scene.questions) for scene in shipped.scenes
    ]
    for scene in made.scenes:
        assert scene.picture().size == (336, 336)
