"""DivPrune: the released choice, and the greedy's bound against exhaustive search."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from released import RELEASED, generator
from torch import Tensor

from flowcut.methods.divprune import most_diverse
from flowcut.methods.saliency import unit


def smallest_distance(features: Tensor, chosen: tuple[int, ...]) -> float:
    normed = unit(features[list(chosen)])
    distance = 1 - normed @ normed.T
    return float(distance[~torch.eye(len(chosen), dtype=torch.bool)].min())


@pytest.mark.parametrize("seed", range(5))
def test_as_released(seed: int) -> None:
    features = torch.randn(60, 16, generator=generator(seed))
    assert most_diverse(features, 14).tolist() == RELEASED["divprune"][seed]


@pytest.mark.parametrize("seed", range(5))
def test_against_exhaustive_search(seed: int) -> None:
    features = torch.randn(9, 4, generator=generator(seed))
    chosen = tuple(most_diverse(features, 3).tolist())
    best = max(smallest_distance(features, subset) for subset in combinations(range(9), 3))
    # Angles are a metric, where the greedy reaches half of the best; 1 - cos of half an angle is a quarter at least.
    assert best / 4 <= smallest_distance(features, chosen) <= best + 1e-6


def test_identical_tokens_are_not_chosen_twice() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert most_diverse(features, 4).tolist() == [0, 1, 2, 3]
    assert features[most_diverse(features, 2)].sum(dim=0).tolist() == [1.0, 1.0]
