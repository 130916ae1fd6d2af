"""Cutting whole groups of patches, and frames that share a budget: the policy by itself."""

from __future__ import annotations

import torch

from flowcut import FlowCut
from flowcut.algorithm import flow
from flowcut.methods.flowcut_policy import FlowCutPolicy, pooled_counts
from flowcut.methods.views import LayerView, TowerPass

GROUP, GROUPS = 3, 6


def test_a_group_is_scored_by_the_mean_over_its_patches() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 1 + GROUP * GROUPS, 8) for _ in range(3))
    policy = FlowCutPolicy(FlowCut(target_num=2), TowerPass(GROUPS, (2, 3), 2, torch.device("cpu")))
    policy.observe(LayerView(0, query, key, value, 8**-0.5, 1, None, GROUP))
    selection = policy.select(0)
    relation = flow.share(flow.relation(query, key, 8**-0.5, 1))
    score = flow.score(relation, flow.share(flow.semantic(value, 1)), flow.density(value, 1))
    means = score.reshape(2, GROUPS, GROUP).mean(dim=-1)
    assert selection is not None and selection.counts == (2, 3)
    for row, count in enumerate(selection.counts):
        assert selection.index[row, :count].tolist() == sorted(means[row].topk(count).indices.tolist())


def test_frames_compete_for_a_pooled_budget() -> None:
    importance = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.0], [0.5, 0.4, 0.9, 9.0], [0.3, 0.3, 0.2, 0.1]])
    assert pooled_counts(importance, (2, 2, 2, 2), (2, 2), None) == (3, 1, 3, 1)
    valid = torch.tensor([[True, True, False, False], [True] * 4, [True] * 4, [True] * 4])
    assert pooled_counts(importance, (2, 2, 2, 2), (2, 2), valid) == (2, 2, 3, 1)
