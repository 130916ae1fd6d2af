"""The photographs that ship are those of the lists, free, each there once, and of packages that training didn't use."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowcut.tasks import load_split
from recipes.mini import photos
from recipes.mini.fetch import STAMP_PACKAGES, WALLPAPER_PACKAGES
from recipes.mini.photos import QUESTIONS, pack_photos, photo_packages, photographs
from recipes.mini.workspace import Workspace

FREE = {"public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-SA-4.0"}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float64)


def difference_hash(picture: Image.Image) -> np.ndarray:
    """[64] bool: where a picture of 9 x 8 grey values gets brighter to the right."""
    grey = pixels(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return (grey[:, 1:] > grey[:, :-1]).reshape(-1)


def test_the_shipped_split_is_what_the_lists_say() -> None:
    asked = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    scenes = load_split("photo-v2").scenes
    assert [scene.name for scene in scenes] == [f"{name}.webp" for name in sorted(photographs())]
    for scene in scenes:
        told = [[question.task, question.text, question.answer] for question in scene.questions]
        assert told == asked[Path(scene.name).stem]
    assert len(asked) == len(scenes)


def test_every_picture_is_free_and_from_a_package_that_training_did_not_use() -> None:
    for name, photograph in photographs().items():
        assert photograph.licence in FREE and photograph.author, name
        assert photograph.package or photograph.file.startswith("examples/pictures/"), name
    assert photo_packages() == ("gcompris-qt-data", "palapeli-data", "puzzle-jigsaw")
    assert not set(photo_packages()) & {*STAMP_PACKAGES, *WALLPAPER_PACKAGES}


def test_no_picture_is_there_twice() -> None:
    scenes = load_split("photo-v2").scenes
    hashes = {scene.name: difference_hash(scene.picture()) for scene in scenes}
    assert len({scene.encoded for scene in scenes}) == len(scenes)
    assert len({photograph.sha256 for photograph in photographs().values()}) == len(scenes)
    for one, other in combinations(hashes, 2):
        assert (hashes[one] != hashes[other]).sum() > 8, (one, other)


def test_the_pictures_of_this_repository_are_packed_as_they_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: photograph for name, photograph in photographs().items() if not photograph.package}
    monkeypatch.setattr(photos, "photographs", lambda: ours)
    made = pack_photos("photo-v2", Workspace(tmp_path), tmp_path / "photo-v2.zip")
    shipped = {scene.name: scene for scene in load_split("photo-v2").scenes}
    assert len(made.scenes) == 8
    for scene in made.scenes:
        same = shipped[scene.name]
        assert scene.questions == same.questions and scene.picture().size == (336, 336)
        assert np.abs(pixels(scene.picture()) - pixels(same.picture())).mean() < 1


def test_another_picture_under_the_name_is_refused(tmp_path: Path) -> None:
    photograph = photographs()["coffee"]
    assert photograph.read(Workspace(tmp_path))
    with pytest.raises(ValueError, match="has changed since the questions"):
        replace(photograph, sha256="0" * 64).read(Workspace(tmp_path))
