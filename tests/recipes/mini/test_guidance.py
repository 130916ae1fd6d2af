"""Guidance finds the word that is asked for and rewards attention in the right place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowcut.tasks import TaskQuestion
from recipes.mini.guidance import ANSWER_HEADS, WORD_HEADS, asked_for, asked_patches, guidance


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("Is there an owl in the picture?", "Is there an owl"),
        ("Do you see a dog?", "Do you see a dog"),
        ("Where do you see the star?", "Where do you see the star"),
        ("Where is the dog?", "Where is the dog"),
        ("How many mice are there?", "How many mice"),
        ("Count the mice.", "Count the mice"),
        ("What color is the star?", "What color is the star"),
        ("What is at the top left?", "What is at the top left"),
        ("What shape is red?", "What shape is red"),
    ],
)
def test_the_word_that_is_asked_for(text: str, until: str) -> None:
    assert asked_for(text) == until


def test_patches_follow_the_resolution() -> None:
    touched = np.zeros((1, 24, 24), bool)
    touched[0, 3, 3] = True
    questions = [TaskQuestion("where", "", "", (0,)), TaskQuestion("exist", "", "No")]
    full = asked_patches(touched, questions, halved=False)
    halved = asked_patches(touched, questions, halved=True)
    assert full.nonzero().tolist() == [[0, 3 * 24 + 3]]
    assert halved.nonzero().tolist() == [[0, 1 * 12 + 1]]


def test_attention_in_the_right_place_costs_least() -> None:
    layers = max(layer for layer, _ in (*WORD_HEADS, *ANSWER_HEADS)) + 1
    looks = torch.tensor([[6, 7], [8, 9]])
    visual = slice(1, 5)
    asked = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # the second asks for something absent

    def loss(first: int, second: int) -> float:
        weights = torch.zeros(1, 9, 10, 10)
        weights[:, :, [6, 7], first] = 1
        weights[:, :, [8, 9], second] = 1
        return guidance([weights] * layers, looks, visual, asked).item()

    best = loss(2, 0)
    assert best < 0.01
    assert loss(3, 0) > best
    assert loss(2, 3) > best
