"""Counting heads are to look at every thing of a patch's noun alike, and to a fixed degree at CLS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.mini.counting_heads import CLS_DEGREE, COUNTING_HEADS, counting, counting_heads, herds
from recipes.mini.material import Material
from recipes.mini.render import render
from recipes.mini.scene import BACKGROUND, GRID, Item, Scene
from recipes.mini.tower import Upper
from recipes.mini.workspace import Workspace

LARGE = [0, 1, 2, GRID, GRID + 1, GRID + 2]
SMALL = [200]
OTHER = [300, 301]


def _scene() -> Scene:
    """Two dogs, one of six patches and one of one, a cat of two, and a star."""
    owner = np.full(GRID * GRID, BACKGROUND, np.uint8)
    touched = np.zeros((4, GRID * GRID), bool)
    for index, patches in enumerate((LARGE, SMALL, OTHER, [400])):
        owner[patches] = index
        touched[index, patches] = True
    kinds = (("noun", "dog"), ("noun", "dog"), ("noun", "cat"), ("shape", "star"))
    items = tuple(Item(kind, name, "", (0, 0), (14, 14)) for kind, name in kinds)  # type: ignore[arg-type]
    return Scene(items, owner.reshape(GRID, GRID), touched.reshape(4, GRID, GRID), "medium")


def _attention(large: float, small: float, other: float, cls_of_dogs: float, cls_of_cats: float) -> Tensor:
    """[1, 577, 577] in which dogs look at dogs and cats at cats, with the given masses; the rest lies on patch 500."""
    attention = torch.zeros(1, 577, 577)
    for queries, masses, cls in (
        ([*LARGE, *SMALL], ((LARGE, large), (SMALL, small)), cls_of_dogs),
        (OTHER, ((OTHER, other),), cls_of_cats),
    ):
        row = torch.zeros(577)
        row[0] = cls
        for patches, mass in masses:
            row[[1 + patch for patch in patches]] = mass / len(patches)
        row[501] = 1 - row.sum()
        attention[0, [1 + patch for patch in queries]] = row
    return attention


def test_things_are_found_by_noun_and_shapes_left_out() -> None:
    assert sorted(len(things) for things in herds(_scene())) == [1, 2]


def test_looking_at_things_alike_costs_nothing_whatever_their_size() -> None:
    dogs, cats = CLS_DEGREE + 2, CLS_DEGREE + 1
    right = (1 / dogs, 1 / dogs, 1 / cats, CLS_DEGREE / dogs, CLS_DEGREE / cats)
    assert counting(_attention(*right), _scene()).item() == pytest.approx(0, abs=5e-3)
    by_size = (12 / 7 / dogs, 2 / 7 / dogs, *right[2:])
    same_cls = (*right[:3], CLS_DEGREE / cats - 0.2, right[4])
    elsewhere = (0.0, 0.0, 0.0, 0.0, 0.0)
    costs = [counting(_attention(*masses), _scene()).item() for masses in (right, by_size, same_cls, elsewhere)]
    assert costs[0] < min(costs[1:3]) and max(costs[1:3]) < costs[3]


def test_a_scene_without_nouns_costs_nothing() -> None:
    scene = _scene()
    bare = Scene(scene.items[3:], scene.owner, scene.touched[3:], "medium")
    assert counting(torch.rand(2, 577, 577), bare).item() == 0


def test_the_tower_s_own_attention_is_watched_only_while_entered(workspace: Workspace, material: Material) -> None:
    upper = Upper(workspace, attention="eager")
    stem = torch.randn(1, 577, 384)
    with counting_heads(upper.blocks) as seen:
        upper(stem)
    heads = torch.stack(seen, dim=1)
    inside = sum(-block <= len(upper.blocks) for block, _ in COUNTING_HEADS)
    assert heads.shape == (1, inside, 577, 577)
    torch.testing.assert_close(heads.sum(dim=-1), torch.ones(1, inside, 577))
    _, scene = render(material, "train", 0)
    counting(heads[0], scene).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in upper.adapters())
    upper(torch.zeros(1, 577, 384))
    assert len(seen) == inside
