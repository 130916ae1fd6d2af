"""PruMerge+: centres and weights by hand."""

from __future__ import annotations

import pytest
import torch

from flowcut import PruMerge
from flowcut.methods.prumerge import prune_and_merge


def test_by_hand() -> None:
    attention = torch.tensor([0.05, 0.4, 0.1, 0.2, 0.05, 0.1])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.1]])
    # Centres: 1 by attention; the middle of the rest 0, 2, 3, 4, 5 is 3. The last token holds the rest, 2 leads it.
    index, weights = prune_and_merge(attention, keys, tokens=3, attention_share=0.5, neighbours=1)
    assert index.tolist() == [1, 2, 3]
    expected = [[0.05, 1, 0, 0, 0, 0], [0.05, 0, 0.1, 0, 0.05, 0.1], [0, 0, 0.1, 1, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected))


@pytest.mark.parametrize("tokens", range(1, 13))
def test_every_budget(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    attention, keys = torch.rand(12, generator=generator), torch.randn(12, 4, generator=generator)
    index, weights = prune_and_merge(attention, keys, tokens, 0.25, 32)
    assert index.tolist() == sorted(set(index.tolist())) and len(index) == tokens and weights.shape == (tokens, 12)
    if tokens == 12:
        assert torch.equal(weights, torch.eye(12))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="attention_share"):
        PruMerge(target_num=3, attention_share=2.0)
    with pytest.raises(ValueError, match="neighbours"):
        PruMerge(target_num=3, neighbours=-1)
