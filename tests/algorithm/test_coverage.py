"""The tokens that cover most, against the plain definition and against every set there is."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from flowcut.algorithm.coverage import largest_coverage


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coverage(features: Tensor, size: Tensor, chosen: list[int]) -> float:
    """By its definition, of one set ``[N, width]``."""
    covered = [
        max([0.0, *(float(torch.cosine_similarity(token, features[one], dim=0)) for one in chosen)])
        for token in features
    ]
    return float((torch.tensor(covered) * size).sum() / size.sum())


def greedy(features: Tensor, quality: Tensor, size: Tensor, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        before = coverage(features, size, chosen)
        gains = {
            place: (coverage(features, size, [*chosen, place]) - before) * float(quality[place])
            for place in range(len(features))
            if place not in chosen
        }
        chosen.append(max(gains, key=gains.__getitem__))
    return sorted(chosen)


def test_each_step_takes_what_adds_most() -> None:
    features, quality, size = drawn(2, 9, 4), drawn(2, 9, seed=1).exp(), drawn(2, 9, seed=2).exp()
    kept = largest_coverage(features, quality, (4, 3), size)
    for row, count in enumerate((4, 3)):
        expected = greedy(features[row], quality[row], size[row], count)
        assert kept[row, :count].tolist() == expected
    alone = largest_coverage(features[:1], quality[:1], (4,))
    assert alone[0].tolist() == greedy(features[0], quality[0], torch.ones(9), 4)


def test_it_is_near_the_best_set_there_is() -> None:
    # Greedy coverage reaches 1 - 1/e of the best at least (Nemhauser, Wolsey and Fisher, 1978).
    ones = torch.ones(9)
    for seed in range(4):
        features = drawn(9, 4, seed=seed)
        kept = largest_coverage(features[None], ones[None], (3,))[0].tolist()
        best = max(coverage(features, ones, list(some)) for some in combinations(range(9), 3))
        assert coverage(features, ones, kept) >= (1 - torch.e**-1) * best


def test_padding_is_neither_taken_nor_covered() -> None:
    features, quality = drawn(1, 8, 4), drawn(1, 8, seed=1).exp()
    valid = torch.arange(8)[None] < 6
    alone = largest_coverage(features[:, :6], quality[:, :6], (3,))
    assert largest_coverage(features, quality, (3,), valid=valid).tolist() == alone.tolist()


def test_those_that_are_taken_first_count_as_taken() -> None:
    features, ones = drawn(1, 8, 4), torch.ones(1, 8)
    first = torch.tensor([[5, 2]])
    kept = largest_coverage(features, ones, (3,), first=first)[0].tolist()
    gains = {place: coverage(features[0], ones[0], [5, 2, place]) for place in range(8) if place not in (2, 5)}
    assert kept == sorted([2, 5, max(gains, key=gains.__getitem__)])


def test_where_everything_is_covered_quality_decides() -> None:
    features = drawn(1, 1, 4).expand(1, 6, 4)
    quality = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0, 0.5]])
    assert largest_coverage(features, quality, (3,)).tolist() == [[1, 3, 4]]
    assert largest_coverage(features, quality, (0,)).shape == (1, 0)
