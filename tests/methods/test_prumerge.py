"""PruMerge+: the released outstanding patches and merged tokens, centres and weights by hand."""

from __future__ import annotations

import pytest
import torch
from released import RELEASED, generator

from flowcut import PruMerge
from flowcut.methods.prumerge import PruMergePolicy, merge_around, prune_and_merge
from flowcut.methods.views import LayerView, OutputView, TowerPass


@pytest.mark.parametrize("seed", range(2))
def test_as_released(seed: int) -> None:
    """Of 576 patches, at the number of tokens that the released code arrives at.

    The outstanding patches are its own. Its evenly spaced ones lie elsewhere, so they are given to the merging, which
    puts out its tokens.
    """
    drawn, expected = generator(seed), RELEASED["prumerge"][seed]
    states = torch.randn(1, 577, 4, generator=drawn)
    query, key = 0.2 * torch.randn(1, 577, 4, generator=drawn), torch.randn(1, 577, 4, generator=drawn)
    target = len(expected["tokens"])
    policy = PruMergePolicy(PruMerge(target_num=target), TowerPass(576, (target,), 1, torch.device("cpu")))
    heads = [of.reshape(1, 577, 2, 2).transpose(1, 2) for of in (query, key, states)]
    policy.observe(LayerView(0, *heads, scaling=2**-0.5, prefix=1, valid=None))
    chosen = policy.reduce(OutputView(0, states[:, 1:], (576,)))
    assert chosen is not None and chosen.counts == (target,)
    assert set(expected["outstanding"]) <= set(chosen.index[0].tolist())

    assert policy.attention is not None and policy.keys is not None
    outstanding = policy.attention[0].topk(len(expected["outstanding"])).indices
    assert outstanding.tolist() == expected["outstanding"]
    centre = torch.cat([outstanding, torch.tensor(expected["spaced"])])
    index, weights = merge_around(centre, policy.attention[0], policy.keys[0], neighbours=32, rest=True)
    rest = index[~torch.isin(index, centre)]
    # The released code puts the token of the rest behind the centres.
    order = torch.searchsorted(index, torch.cat([centre, rest]))
    torch.testing.assert_close((weights @ states[0, 1:])[order], torch.tensor(expected["tokens"]), rtol=1e-4, atol=1e-5)


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
