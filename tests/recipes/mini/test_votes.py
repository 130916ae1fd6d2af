"""Things vote for their number, each with one voice."""

from __future__ import annotations

import torch
from torch import nn

from flowcut.tasks import TaskQuestion
from recipes.mini.votes import number_votes, vote


def sure_of(numbers: list[int]) -> torch.Tensor:
    """[576, 6] logits of patches, of which the first ones are sure of these numbers."""
    scores = torch.zeros(576, 6)
    for patch, number in enumerate(numbers):
        scores[patch, number - 1] = 10
    return scores


def things(*patches: list[int]) -> torch.Tensor:
    touched = torch.zeros(len(patches), 576, dtype=torch.bool)
    for mine, thing in zip(patches, touched, strict=True):
        thing[mine] = True
    return touched


def test_a_large_thing_has_no_more_voice_than_small_ones() -> None:
    scores = sure_of([2, 2, 2, 2, 3, 3])
    assert vote(scores, things([0, 1, 2, 3], [4], [5])) == 3
    assert vote(scores, things([0, 1, 2, 3], [], [4])) == 2
    assert vote(scores, things([0, 1, 2, 3])) == 2


def test_only_numbers_are_asked_and_sorted_by_answer() -> None:
    class Says(nn.Module):
        def logits(self, projected: torch.Tensor, aspect: str) -> torch.Tensor:
            assert aspect == "count"
            return sure_of([3, 2, 3])

    touched = things([0], [1], [2]).reshape(3, 24, 24).numpy()
    questions = (
        TaskQuestion("count", "Count the dogs.", "3", (0, 2)),
        TaskQuestion("count", "Count the cats.", "1", (1,)),
        TaskQuestion("name", "What is on the left?", "dog", (0,)),
    )
    scenes = [(torch.zeros(577, 384), touched, questions), (torch.zeros(577, 384), touched, questions[2:])]
    votes = number_votes(nn.Identity(), nn.Identity(), Says(), scenes)
    assert votes == {"1": [False], "3": [True]}
    assert list(votes) == ["1", "3"]
