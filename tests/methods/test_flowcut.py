"""FlowCut's ablations (paper, Table 7): each term on its own, against the tower's own attention."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from flowcut import FlowCut, attach

TARGET = 9


def attention_of_cls(model: Any, pixels: Tensor) -> list[Tensor]:
    """The uncut tower's attention from CLS to the patches, mean over heads, for every layer."""
    model.set_attn_implementation("eager")
    maps = model.model.vision_tower(pixels, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [attention.mean(dim=1)[:, 0, 1:] for attention in maps]


def kept(model: Any, pixels: Tensor, method: FlowCut) -> list[list[int]]:
    with attach(model, method):
        return [image.kept.tolist() for image in model.get_image_features(pixels).flowcut_images]


@torch.no_grad()
def test_a_single_cut_by_one_layer_s_attention_is_a_plain_top_k() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(3)
    last = attention_of_cls(model, pixels)[5]
    plain = FlowCut(target_num=TARGET, cut_every=None, history=0.0, criteria="relation")
    assert kept(model, pixels, plain) == last.topk(TARGET).indices.sort().values.tolist()


@torch.no_grad()
def test_history_is_the_running_mean_over_layers() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(3)
    importance: Tensor | None = None
    for relation in attention_of_cls(model, pixels)[:6]:
        current = relation / relation.sum(dim=1, keepdim=True)
        importance = current if importance is None else 0.5 * importance + 0.5 * current
    assert importance is not None
    cumulative = FlowCut(target_num=TARGET, cut_every=None, criteria="relation")
    assert kept(model, pixels, cumulative) == importance.topk(TARGET).indices.sort().values.tolist()


@torch.no_grad()
def test_without_the_adaptive_number_every_cut_takes_an_equal_share() -> None:
    model = tiny.tiny_model()
    with attach(model, FlowCut(target_num=TARGET, adaptive=False)):
        traces = model.get_image_features(tiny.pictures(3)).flowcut_images
    for trace in traces:
        # 27 patches go in the three cuts after layers 1, 3 and 5.
        assert trace.tokens_after_layer == [37, 28, 28, 19, 19, 10, 10, 10]


@torch.no_grad()
def test_every_ablation_reaches_the_budget_and_differs() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(2)
    outcomes = {
        tuple(map(tuple, kept(model, pixels, method)))
        for method in (
            FlowCut(target_num=TARGET),
            FlowCut(target_num=TARGET, criteria="relation"),
            FlowCut(target_num=TARGET, history=0.0),
            FlowCut(target_num=TARGET, cut_every=None),
        )
    }
    assert len(outcomes) == 4
    assert all(len(image) == TARGET for outcome in outcomes for image in outcome)


def test_unknown_criteria_are_refused() -> None:
    with pytest.raises(ValueError, match="criteria"):
        FlowCut(target_num=TARGET, criteria="density")  # type: ignore[arg-type]
