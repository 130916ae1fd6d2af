"""The renderer knows what every patch shows."""

from __future__ import annotations

from collections import Counter

import numpy as np

from recipes.mini.render import FLOCKS_FROM, HERDS_FROM, SPLIT_SEEDS, render, scene_seed
from recipes.mini.scene import BACKGROUND, GRID, Item, Scene, patches_of


def test_owner_is_the_item_that_fills_most_of_a_patch() -> None:
    pixels = np.full((336, 336), -1, np.int16)
    pixels[:14, :10] = 0  # 71% of the first patch
    pixels[:14, 10:14] = 1  # 29% of it
    pixels[14:16, :14] = 1  # 14% of the patch below
    owner, touched = patches_of(pixels, 2)
    assert owner[0, 0] == 0
    assert owner[1, 0] == BACKGROUND
    assert touched[:, 0, 0].tolist() == [True, True]
    assert touched[:, 1, 0].tolist() == [False, True]
    assert (owner == BACKGROUND).sum() == GRID * GRID - 1


def test_position_names_follow_the_centre() -> None:
    assert Item("noun", "dog", "", (10, 10), (5, 5)).position == "top left"
    assert Item("noun", "dog", "", (168, 168), (5, 5)).position == "middle"
    assert Item("noun", "dog", "", (330, 120), (5, 5)).position == "right"
    assert Item("noun", "dog", "", (168, 168), (5, 5)).margin == 56
    assert Item("noun", "dog", "", (120, 300), (5, 5)).margin == 8


def test_json_round_trip(material) -> None:
    _, scene = render(material, "train", 3)
    again = Scene.from_json(scene.to_json())
    assert again.items == scene.items
    assert np.array_equal(again.owner, scene.owner)
    assert np.array_equal(again.touched, scene.touched)


def test_same_seed_same_picture(material) -> None:
    first, again = render(material, "test", 5), render(material, "test", 5)
    assert np.array_equal(np.asarray(first[0]), np.asarray(again[0]))
    assert first[1].items == again[1].items


def test_splits_share_no_scene(material) -> None:
    seeds = {scene_seed(split, index) for split in SPLIT_SEEDS for index in range(50)}
    assert len(seeds) == 50 * len(SPLIT_SEEDS)
    pictures = {np.asarray(render(material, split, i)[0]).tobytes() for split in SPLIT_SEEDS for i in range(6)}
    assert len(pictures) == 6 * len(SPLIT_SEEDS)


def test_late_training_scenes_show_up_to_six_alike_and_shapes(material) -> None:
    herds = [render(material, "train", HERDS_FROM + index)[1] for index in range(30)]
    alike = [Counter(item.name for item in scene.items if item.kind == "noun") for scene in herds]
    assert {number for counts in alike for number in counts.values()} == {1, 2, 3, 4, 5, 6}
    assert {len(counts) for counts in alike} == {1, 2}
    shapes = [[item for item in scene.items if item.kind == "shape"] for scene in herds]
    assert {item.kind for scene in herds for item in scene.items} == {"noun", "shape"}
    assert max(map(len, shapes)) == 4
    assert all(len({item.color for item in drawn}) == len(drawn) for drawn in shapes)
    others = [render(material, "train", HERDS_FROM - 1), render(material, "test", HERDS_FROM)]
    assert all(scene.layout != "herd" for _, scene in others)


def test_flocks_are_varied_and_things_in_them_are_repeated(material) -> None:
    def shown(first: int) -> tuple[list[Scene], Counter[int]]:
        scenes = [render(material, "train", first + index)[1] for index in range(60)]
        return scenes, Counter(len(where) for scene in scenes for where in scene.by_noun().values())

    flocks, repeated = shown(FLOCKS_FROM)
    usual, usually = shown(0)
    assert {scene.layout for scene in flocks} == {scene.layout for scene in usual} - {"close"}
    assert max(len(scene.by_noun()) for scene in flocks) > 2
    assert set(range(1, 7)) <= set(repeated)
    assert repeated[1] / repeated.total() < 0.65 < usually[1] / usually.total()
    assert render(material, "test", FLOCKS_FROM)[1].items != flocks[0].items
    assert render(material, "train", FLOCKS_FROM - 1)[1].layout == "herd"


def test_foreground_ranges_from_specks_to_close_ups(material) -> None:
    scenes = [render(material, "train", index)[1] for index in range(80)]
    cover = [float((scene.owner != BACKGROUND).mean()) for scene in scenes]
    assert min(cover) < 0.06
    assert max(cover) > 0.6
    counts = {len(scene.items) for scene in scenes}
    assert min(counts) == 1
    assert max(counts) >= 8
