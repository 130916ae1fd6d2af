"""FlowCut's tower cut against a plain re-computation of its formulas: image by image, layer by layer, in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from flowcut import FlowCut, attach


def model_of(depth: int, feature_layer: int, strategy: str) -> Any:
    """A tiny LLaVA with a CLIP tower of so many layers."""
    config = tiny.tiny_config(vision_feature_layer=feature_layer, vision_feature_select_strategy=strategy)
    config.vision_config.num_hidden_layers = depth
    torch.manual_seed(depth)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    return tiny.concentrate(model).double()


def projected(attention: Any, hidden: Tensor) -> list[Tensor]:
    """q, k, v of one image, ``[heads, tokens, size]`` each."""
    modules = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [module(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for module in modules]


def attended(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and weights ``[heads, tokens, tokens]`` of plain attention."""
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return attention.out_proj((weights @ value).transpose(0, 1).flatten(1)), weights


def score_of(weights: Tensor, value: Tensor, method: FlowCut) -> tuple[Tensor, Tensor]:
    """The relation shares and the score of one image's patches."""
    relation = weights[:, 0, 1:].mean(0)
    relation = relation / relation.sum()
    if method.criteria == "relation":
        return relation, relation
    scale = value.shape[-1] ** -0.5 if method.scale_semantic else 1.0
    logits = torch.stack([head[0] @ head.mT * scale for head in value])
    semantic = torch.softmax(logits, dim=-1).mean(0)[1:]
    return relation, (relation + semantic / semantic.sum()) * value.mean(0)[1:].abs().sum(-1)


def wanted(relation: Tensor, left: int, target: int, remaining: int, method: FlowCut) -> int:
    """How many patches one image would lose by itself."""
    if left <= target or remaining == 0:
        return max(left - target, 0)
    if method.cut_every is None:
        return 0
    if not method.adaptive:
        return (left - target) // (remaining // method.cut_every + 1)
    entropy = -(relation * relation.log()).sum() / torch.tensor(float(left)).log()
    return min(round(float((left - target) / remaining**0.5 * (1 - entropy**2))), left - target)


def by_hand(model: Any, pixels: Tensor, target: int, method: FlowCut) -> tuple[list[list[int]], list[list[int]]]:
    """Patches kept, and patches left after every layer, of every image."""
    tower = model.model.vision_tower
    last = model.config.vision_feature_layer % (len(tower.encoder.layers) + 1)
    hidden = list(tower.pre_layrnorm(tower.embeddings(pixels)))
    kept = [list(range(tiny.PATCHES)) for _ in hidden]
    history: list[Tensor | None] = [None] * len(hidden)
    counts: list[list[int]] = [[] for _ in hidden]
    for index, layer in enumerate(tower.encoder.layers[:last]):
        cuts = []
        remaining = last - 2 - index
        for image, states in enumerate(hidden):
            query, key, value = projected(layer.self_attn, layer.layer_norm1(states))
            mixed, weights = attended(layer.self_attn, query, key, value)
            states = states + mixed
            hidden[image] = states + layer.mlp(layer.layer_norm2(states))
            relation, score = score_of(weights, value, method)
            before = history[image]
            history[image] = score if before is None else method.history * before + (1 - method.history) * score
            cuts.append(wanted(relation, len(kept[image]), target, remaining, method))
        every = method.cut_every
        if remaining == 0 or (every is not None and remaining > 0 and remaining % every == 0):
            for image, cut in enumerate(cuts):
                left = len(kept[image])
                stays = max(left - (max(cuts) if method.couple_batch else cut), min(target, left))
                total = history[image]
                assert total is not None
                best = total.topk(stays).indices.sort().values
                history[image] = total[best]
                kept[image] = [kept[image][patch] for patch in best.tolist()]
                hidden[image] = torch.cat([hidden[image][:1], hidden[image][1:][best]])
        for image, patches in enumerate(kept):
            counts[image].append(len(patches))
    return kept, counts


def check(model: Any, pixels: Tensor, method: FlowCut, prefix: int = 0) -> None:
    """The method's tower against the re-computation, whose budget leaves out the visible CLS token."""
    assert method.target_num is not None
    kept, counts = by_hand(model, pixels, min(method.target_num, tiny.PATCHES + prefix) - prefix, method)
    with attach(model, method):
        traces = model.get_image_features(pixels).flowcut_images
    assert [trace.kept.tolist() for trace in traces] == kept
    layers = len(counts[0])
    assert [trace.tokens_after_layer[:layers] for trace in traces] == [[n + 1 for n in image] for image in counts]


@pytest.mark.parametrize("depth", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("feature_layer", [-1, -2, -3])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.filterwarnings("ignore:target_num")
@torch.no_grad()
def test_towers_of_every_depth(depth: int, feature_layer: int, strategy: str) -> None:
    if feature_layer % (depth + 1) < 2:
        pytest.skip("nothing can be cut in front of the second layer")
    model, pixels = model_of(depth, feature_layer, strategy), tiny.pictures(3, depth).double()
    prefix = int(strategy == "full")
    for target, released in product((1 + prefix, 7, tiny.PATCHES - 1, 50), (False, True)):
        method = FlowCut.as_released(target) if released else FlowCut(target_num=target)
        check(model, pixels, method, prefix)


TABLE_7 = [
    {"cut_every": every, "adaptive": adaptive, "history": history, "criteria": criteria}
    for every, adaptive, history, criteria in product((None, 2), (True, False), (0.0, 0.5), ("relation", "all"))
]
"""The paper's ablation: one cut or many, with and without A (adaptive number), C (history) and M (criteria)."""


@pytest.mark.parametrize("row", TABLE_7, ids=lambda row: "-".join(map(str, row.values())))
@torch.no_grad()
def test_every_row_of_table_7(row: dict[str, Any]) -> None:
    check(model_of(8, -2, "default"), tiny.pictures(3).double(), FlowCut(target_num=9, **row))


@pytest.mark.parametrize("field", [{"cut_every": 1}, {"cut_every": 3}, {"scale_semantic": True}, {"history": 0.8}])
@torch.no_grad()
def test_other_settings(field: dict[str, Any]) -> None:
    check(model_of(9, -2, "default"), tiny.pictures(2).double(), FlowCut(target_num=9, **field))
