"""Which pictures a split may show."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from recipes.mini.material import Material
from recipes.mini.vocabulary import nouns, plural, with_article
from recipes.mini.workspace import Workspace


def test_nouns_are_distinct_and_enough() -> None:
    names = [noun.name for noun in nouns()]
    assert len(set(names)) == len(names)
    assert 120 <= len(names) <= 200
    assert sum(bool(noun.held_out) for noun in nouns()) >= 40


def test_held_out_cutouts_are_never_trained_on() -> None:
    for noun in nouns():
        assert not set(noun.cutouts) & set(noun.held_out)


def test_new_instances_show_only_held_out_cutouts(material: Material, monkeypatch) -> None:
    shown: list[str] = []
    read = "recipes.mini.material._read_cutout"

    def record(path):
        shown.append(str(path))
        return Image.new("RGBA", (4, 4))

    monkeypatch.setattr(read, record)
    noun = next(noun for noun in nouns() if noun.held_out)
    for index in range(10):
        material.cutout(noun, "new", np.random.default_rng(index))
        material.cutout(noun, "train", np.random.default_rng(index))
    new, trained = shown[::2], shown[1::2]
    assert all(any(path in name for path in noun.held_out) for name in new)
    assert not any(name.removesuffix(".png").endswith(path) for name in trained for path in noun.held_out)


def test_test_backgrounds_are_their_own(material: Material) -> None:
    seen = {
        split: {material.photograph(split, np.random.default_rng(index)).tobytes() for index in range(40)}
        for split in ("train", "test")
    }
    assert not seen["train"] & seen["test"]


def test_an_empty_workspace_says_what_to_run(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="fetch"):
        Material(Workspace(tmp_path))


def test_grammar() -> None:
    assert [plural(name) for name in ("dog", "mouse", "glass", "torch", "sheep", "cherry")] == [
        "dogs", "mice", "glasses", "torches", "sheep", "cherries",
    ]  # fmt: skip
    assert with_article("apple") == "an apple"
    assert with_article("dog") == "a dog"
