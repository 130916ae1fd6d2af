"""VisPruner: the released choice, and a case by hand."""

from __future__ import annotations

import pytest
import torch
from released import RELEASED, generator

from flowcut import VisPruner
from flowcut.methods.vispruner import important_and_diverse


@pytest.mark.parametrize("seed", range(5))
def test_as_released(seed: int) -> None:
    drawn = generator(seed)
    features, attention = torch.randn(66, 16, generator=drawn), torch.rand(66, generator=drawn)
    assert important_and_diverse(attention, features, 20, 10, 8).tolist() == RELEASED["vispruner"][seed]


def test_by_hand() -> None:
    attention = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2])
    # Behind token 0 the sets are {1, 3} and {2, 4}; 3 is closer to 4 than 1 is to any.
    features = torch.tensor([[1.0, 1.0], [1.0, 0.2], [0.0, 1.0], [-1.0, 0.1], [-1.0, 0.0]])
    assert important_and_diverse(attention, features, 4, 1, 8).tolist() == [0, 1, 2, 4]
    assert important_and_diverse(attention, features, 2, 2, 8).tolist() == [0, 1]
    for tokens in range(1, 6):
        assert len(set(important_and_diverse(attention, features, tokens, 0, 2).tolist())) == tokens


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="important_ratio"):
        VisPruner(target_num=3, important_ratio=1.5)
    with pytest.raises(ValueError, match="step"):
        VisPruner(target_num=3, step=0)
