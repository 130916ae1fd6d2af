"""ToMe: which tokens the released code merges over several layers, matching by hand, sizes in the attention."""

from __future__ import annotations

import pytest
import tiny
import torch
from released import RELEASED, generator

from flowcut import ToMe, UnsupportedModelError, attach
from flowcut.methods.tome import bipartite_soft_matching, merge_matrix, merging_plan
from flowcut.stages.tower.shared import check_bias


@pytest.mark.parametrize("has_cls", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_three_layers_as_released(seed: int, has_cls: bool) -> None:
    states = torch.randn(1, 30 + has_cls, 16, generator=generator(seed))[0, int(has_cls) :]
    size, order, sources = torch.ones(30), torch.arange(30), torch.eye(30)
    for merges in (7, 6, 5):
        stay, source, target = bipartite_soft_matching(states[order], merges, has_cls)
        index, own, rank = merge_matrix(size, order[source], order[target])
        states, sources = own / own.sum(dim=1, keepdim=True) @ states, ((own != 0).float() @ sources > 0).float()
        size, order = own.sum(dim=1), rank[order[stay]]
        assert index.tolist() == sorted(index.tolist()) and sorted(order.tolist()) == list(range(len(index)))
    assert size.sum() == 30
    groups = sorted(row.nonzero()[:, 0].tolist() for row in sources)
    assert groups == RELEASED["tome_cls" if has_cls else "tome"][seed]


def test_matching_by_hand() -> None:
    # First set: 0, 2; second set: 1, 3. Token 2 equals 3, token 0 lies near 1.
    keys = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.0, 2.0], [0.0, 1.0]])
    stay, source, target = bipartite_soft_matching(keys, 1, has_cls=False)
    assert (stay.tolist(), source.tolist(), target.tolist()) == ([0, 1, 3], [2], [3])
    index, own, rank = merge_matrix(torch.tensor([1.0, 2.0, 3.0, 1.0]), source, target)
    assert index.tolist() == [0, 1, 3] and rank[stay].tolist() == [0, 1, 2]
    assert own.tolist() == [[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 3.0, 1.0]]


@pytest.mark.parametrize(("patches", "target", "layers"), [(576, 64, 23), (36, 1, 7), (36, 35, 7), (577, 1, 23)])
def test_plan(patches: int, target: int, layers: int) -> None:
    plan = merging_plan(patches, target, layers)
    assert plan[-1] == target and len(plan) == layers
    assert all(after >= before - before // 2 for before, after in zip([patches, *plan], plan, strict=False))


def test_a_plan_that_halving_cannot_reach() -> None:
    with pytest.raises(ValueError, match="halves the tokens"):
        merging_plan(36, 1, 2)


@torch.no_grad()
def test_sizes_change_the_attention_and_eager_agrees_with_sdpa() -> None:
    inputs = {"pixel_values": tiny.pictures(2)}
    features = {}
    for attention in ("eager", "sdpa"):
        for proportional in (True, False):
            model = tiny.tiny_model(attention=attention)
            with attach(model, ToMe(target_num=9, proportional=proportional)):
                output = model.model.get_image_features(**inputs).pooler_output
                features[attention, proportional] = torch.stack(list(output))
    torch.testing.assert_close(features["eager", True], features["sdpa", True], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features["sdpa", True], features["sdpa", False], atol=1e-3)


@pytest.mark.parametrize("name", ["flash_attention_2", "flowcut_flex_attention"])
def test_attention_that_takes_no_bias(name: str) -> None:
    check_bias("sdpa")
    with pytest.raises(UnsupportedModelError, match="attention"):
        check_bias(name)
