"""SCOPE: the released choice, and every greedy step against all gains computed one by one."""

from __future__ import annotations

import pytest
import torch
from released import RELEASED, generator

from flowcut import Scope
from flowcut.methods.saliency import unit
from flowcut.methods.scope import salient_cover


@pytest.mark.parametrize("seed", range(5))
def test_as_released(seed: int) -> None:
    drawn = generator(seed)
    features, attention = torch.randn(60, 16, generator=drawn), torch.rand(60, generator=drawn)
    assert salient_cover(features[None], attention[None], (14,))[0].tolist() == RELEASED["scope"][seed]


def test_every_step_has_the_largest_gain() -> None:
    drawn = generator(7)
    features, saliency = torch.randn(10, 4, generator=drawn), torch.rand(10, generator=drawn)
    normed = unit(features)
    similarity = normed @ normed.T

    def coverage(chosen: list[int]) -> float:
        return sum(max([0.0, *(float(similarity[token, other]) for other in chosen)]) for token in range(10))

    chosen: list[int] = []
    for count in range(1, 6):
        gains = {
            token: (coverage([*chosen, token]) - coverage(chosen)) * float(saliency[token])
            for token in range(10)
            if token not in chosen
        }
        chosen.append(max(gains, key=lambda token: gains[token]))
        assert salient_cover(features[None], saliency[None], (count,))[0].tolist() == sorted(chosen)


def test_images_together_choose_what_each_does_alone() -> None:
    drawn = generator(8)
    features, saliency = torch.randn(3, 40, 8, generator=drawn), torch.rand(3, 40, generator=drawn)
    together = salient_cover(features, saliency, (12, 5, 9))
    for row, count in enumerate((12, 5, 9)):
        alone = salient_cover(features[row : row + 1], saliency[row : row + 1], (count,))[0].tolist()
        assert together[row].tolist() == alone + [0] * (12 - count)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        Scope(target_num=3, alpha=-1.0)
