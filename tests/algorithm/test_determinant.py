"""The greedy determinant: every step against explicit determinants, ragged sets, and what has no rank left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcut.algorithm.determinant import RIDGE, centred, largest_determinant


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(features: Tensor, quality: Tensor) -> Tensor:
    """The kernel of one set, in double precision."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    similarity = unit @ unit.T + RIDGE * torch.eye(len(unit))
    return quality.double()[:, None] * similarity * quality.double()


@pytest.mark.parametrize("seed", range(4))
def test_every_step_has_the_largest_determinant(seed: int) -> None:
    features, quality = drawn(2, 9, 5, seed=seed), drawn(2, 9, seed=seed + 50).exp()
    for row in range(2):
        kernel = kernel_of(features[row], quality[row])
        chosen: list[int] = []
        for count in range(1, 6):
            rest = [token for token in range(9) if token not in chosen]
            determinants = {token: float(torch.det(kernel[[*chosen, token]][:, [*chosen, token]])) for token in rest}
            chosen.append(max(determinants, key=lambda token: determinants[token]))
            assert largest_determinant(features, quality, (count, count))[row].tolist() == sorted(chosen)


def test_a_set_is_chosen_as_if_it_were_alone() -> None:
    features, quality = drawn(3, 12, 6), drawn(3, 12, seed=1).exp()
    valid = torch.arange(12) < torch.tensor([12, 7, 9])[:, None]
    counts = (5, 2, 4)
    together = largest_determinant(centred(features, valid), quality, counts, valid)
    for row, (real, count) in enumerate(zip((12, 7, 9), counts, strict=True)):
        own = centred(features[row : row + 1, :real])
        alone = largest_determinant(own, quality[row : row + 1, :real], (count,))[0]
        assert together[row, :count].tolist() == alone.tolist()
        assert together[row, count:].tolist() == [0] * (5 - count)


def test_equal_features_are_taken_by_quality() -> None:
    features = torch.ones(1, 6, 3)
    quality = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0, 0.5]])
    assert largest_determinant(features, quality, (3,)).tolist() == [[1, 3, 4]]


def test_all_tokens_beyond_the_rank() -> None:
    features, quality = drawn(1, 12, 3), drawn(1, 12, seed=1).exp()
    assert largest_determinant(features, quality, (12,)).tolist() == [list(range(12))]


def test_what_must_come_first_comes_first() -> None:
    features, quality = drawn(1, 10, 6), drawn(1, 10, seed=1).exp()
    worst = quality[0].argsort()[:2]
    kept = largest_determinant(features, quality, (4,), first=worst[None])[0].tolist()
    assert largest_determinant(features, quality, (2,), first=worst[None]).tolist() == [sorted(worst.tolist())]
    assert set(worst.tolist()) <= set(kept)
    kernel, rest = kernel_of(features[0], quality[0]), [token for token in range(10) if token not in worst.tolist()]
    sets = {token: [*worst.tolist(), token] for token in rest}
    third = max(rest, key=lambda token: float(torch.det(kernel[sets[token]][:, sets[token]])))
    assert third in kept


def test_only_proportions_of_quality_count() -> None:
    features, quality = drawn(1, 20, 8), drawn(1, 20, seed=1).exp()
    expected = largest_determinant(features, quality, (7,)).tolist()
    for factor in (1e-12, 1e12):
        assert largest_determinant(features, quality * factor, (7,)).tolist() == expected


def test_the_mean_is_that_of_real_tokens() -> None:
    features = drawn(1, 5, 3)
    valid = torch.tensor([[True, True, True, False, False]])
    real = features[:, :3] - features[:, :3].mean(dim=1)
    torch.testing.assert_close(centred(features, valid)[:, :3], real)
    assert not centred(features, valid)[:, 3:].any()
