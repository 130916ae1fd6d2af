"""Dialogues are about scenes worth their time, and ask for all numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from transformers import Dinov2Model

from recipes.mini.curriculum import MOST_ASKED, MOST_ONES, chosen_questions, question_weights, training_scenes
from recipes.mini.features import SHARD, build_shard, read_descriptions, read_scene
from recipes.mini.questions import all_counts
from recipes.mini.render import FLOCKS_FROM, HERDS_FROM, render


def test_dialogues_prefer_scenes_that_show_much(workspace, material) -> None:
    build_shard(workspace, material, Dinov2Model.from_pretrained(workspace.tower).eval(), "train", 0)
    chosen = training_scenes(workspace)
    assert len(chosen) == len(set(chosen))
    assert sorted(chosen) != chosen
    assert set(range(0, SHARD, 6)) <= set(chosen)
    assert len(chosen) < SHARD
    for number in chosen:
        assert (
            read_scene(workspace, "train", number).scene.items
            == dict(read_descriptions(workspace, "train"))[number].items
        )


def test_every_number_is_asked_for_and_rare_ones_weigh_more(material) -> None:
    for index in [*range(20), *range(HERDS_FROM, HERDS_FROM + 10), *range(FLOCKS_FROM, FLOCKS_FROM + 10)]:
        scene = render(material, "train", index)[1]
        random = np.random.default_rng(index)
        several, ones = all_counts(scene, random)
        numbers = Counter(question.answer for question in [*several, *ones])
        asked = chosen_questions(scene, random, others=3)
        counts = Counter(question.answer for question in asked if question.task == "count")
        assert counts["1"] == min(numbers["1"], MOST_ONES, MOST_ASKED["count"] - (numbers.total() - numbers["1"]))
        assert counts - Counter({"1": counts["1"]}) == numbers - Counter({"1": numbers["1"]})
        assert len(asked) - counts.total() <= 3
        assert len(chosen_questions(scene, random)) >= len(asked)
        weights = question_weights(scene, asked)
        assert all(
            weight > 1 or question.answer == "1" if question.task == "count" else weight == 1
            for question, weight in zip(asked, weights, strict=True)
        )
