"""The stored patches are what the model keeps, and the table counts them rightly."""

from __future__ import annotations

from pathlib import Path

import kept_patches
import kept_tables
import numpy as np
import pytest
from shipped import require_mini

from flowcut.checkpoints.loading import load_model


@pytest.mark.parametrize("method", kept_patches.METHODS)
def test_every_scene_has_its_patches(method: str) -> None:
    kept = kept_patches.read()[method]
    assert list(kept) == [number for number, _, _ in kept_patches.asked_scenes()] and len(kept) == 214
    for patches in kept.values():
        assert len(patches) == 64 and list(patches) == sorted(set(patches))
        assert patches[0] >= 0 and patches[-1] < 576


def test_the_model_keeps_what_is_stored() -> None:
    require_mini()
    loaded = load_model("flowcut-mini", "cpu", "float32")
    some = kept_patches.asked_scenes()[7:9]
    for method, stored in kept_patches.read().items():
        found = kept_patches.kept_patches(loaded, method, some)
        assert found == {number: stored[number] for number, _, _ in some}


def test_the_same_patches_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        kept_patches.write(tmp_path / name, "some", {"flowcut": {3: [1, 2]}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert kept_patches.read(tmp_path / "a") == {"flowcut": {3: [1, 2]}}


def test_what_is_left_is_counted_by_hand() -> None:
    kept = kept_patches.read()["flowcut"]
    found = iter(kept_tables.left_of("flowcut", "compact"))
    for number, scene, questions in kept_patches.asked_scenes()[:20]:
        for question in questions:
            if question.task in ("name", "shape", "color"):
                wanted = set(np.flatnonzero(scene.touched[question.about[0]].reshape(-1)).tolist())
                one = next(found)
                assert (one.task, one.patches) == (question.task, len(wanted & set(kept[number])))
    assert sum(one.task == "shape" for one in kept_tables.left_of("flowcut", "compact")) == 150
