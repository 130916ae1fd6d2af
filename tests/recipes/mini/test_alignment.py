"""Dense alignment asks every patch for what the renderer put there."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoTokenizer

from recipes.mini.alignment import (
    ASPECTS,
    COLUMNS,
    CONTENTS,
    NUMBERS,
    ROWS,
    SIZES,
    UNKNOWN,
    DenseAlignment,
    halve_targets,
    targets,
)
from recipes.mini.projector import new_projector
from recipes.mini.scene import BACKGROUND, Item, Scene
from recipes.mini.vocabulary import COLORS


def _scene() -> Scene:
    owner = np.full((24, 24), BACKGROUND, np.uint8)
    owner[0:2, 20:24] = 0
    owner[20:24, 0:3] = 1
    items = (Item("noun", "dog", "", (308, 14), (56, 28)), Item("shape", "star", "red", (21, 308), (42, 56)))
    touched = np.stack([owner == index for index in range(2)])
    return Scene(items, owner, touched, "medium")


def test_targets_name_content_and_place() -> None:
    wanted = targets(_scene()).reshape(24, 24, len(ASPECTS))
    dog = wanted[0, 20].tolist()
    tiny, once = SIZES.index("tiny"), NUMBERS.index("one")
    assert dog == [CONTENTS.index("dog"), ROWS.index("top"), COLUMNS.index("right"), UNKNOWN, tiny, once]
    star = wanted[23, 2].tolist()
    red = tuple(COLORS).index("red")
    small = SIZES.index("small")
    assert star == [CONTENTS.index("star"), ROWS.index("bottom"), COLUMNS.index("left"), red, small, UNKNOWN]
    assert wanted[12, 12].tolist() == [CONTENTS.index("background"), 1, 1, UNKNOWN, UNKNOWN, UNKNOWN]


def test_every_patch_of_a_noun_tells_how_many_there_are() -> None:
    owner = np.full((24, 24), BACKGROUND, np.uint8)
    for index in range(3):
        owner[8 * index, 0:4] = index
    dogs = tuple(Item("noun", "dog", "", (28, 7 + 112 * index), (56, 14)) for index in range(3))
    touched = np.stack([owner == index for index in range(3)])
    wanted = targets(Scene(dogs, owner, touched, "medium"))[:, ASPECTS.index("count")]
    assert wanted[owner.reshape(-1) != BACKGROUND].tolist() == [NUMBERS.index("three")] * 12
    touched[2] = False  # the third is hidden
    assert targets(Scene(dogs, owner, touched, "medium"))[0, ASPECTS.index("count")] == NUMBERS.index("two")


def test_averages_keep_a_target_only_where_most_patches_agree() -> None:
    halved = halve_targets(targets(_scene())).reshape(12, 12, len(ASPECTS))
    assert halved[0, 10, 0] == CONTENTS.index("dog")
    assert halved[10, 1, 0] == UNKNOWN  # two patches of the star, two of the background
    assert halved[5, 5, 0] == CONTENTS.index("background")


def test_loss_falls_when_patches_say_the_words(workspace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workspace.language)
    torch.manual_seed(0)
    alignment = DenseAlignment(torch.randn(len(tokenizer), 576), tokenizer)
    wanted = targets(_scene())
    projected = torch.randn(576, 576)
    before, _ = alignment(projected, wanted)
    said = alignment.words_content[wanted[:, 0]]
    after, right = alignment(2.0 * said + alignment.center, wanted)
    assert after < before
    assert right["content"] > 0.95


def test_a_new_projector_sees_standardised_channels() -> None:
    torch.manual_seed(0)
    scale = torch.logspace(-1, 2, 384)
    features = torch.randn(4000, 384) * scale + 5 * scale
    projector = new_projector(features)
    hidden = projector.linear_1(features)
    assert abs(hidden.mean().item()) < 0.1
    assert 0.8 < hidden.std().item() < 1.2
