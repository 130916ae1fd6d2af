"""The cut inside a packed tower, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_qwen
import torch
from tiny_qwen import FAMILIES, batch, four, sample
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut import FlowCut, NotAppliedError, attach
from flowcut.algorithm.flow import group_means
from flowcut.errors import NonFiniteError
from flowcut.stages.tower.packed_image import pairs_of_images


def test_group_means() -> None:
    values = torch.arange(8.0)[None]
    assert group_means(values, 4).tolist() == [[1.5, 5.5]]
    assert group_means(values, 1) is values


def test_pairs_within_segments() -> None:
    bounds = torch.tensor([0, 3, 5, 9], dtype=torch.int32)
    assert pairs_of_images(bounds, [5, 4]).tolist() == [9 + 4, 16]


@pytest.mark.parametrize("depth", [5, 6])
@torch.no_grad()
def test_scores_of_the_first_cut(depth: int) -> None:
    model = tiny_qwen.tiny_model("qwen2_vl", depth=depth)
    inputs = batch([sample([(1, 10, 12), (1, 14, 12)], [], 3, seed=31)])
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((query, key, value))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["spy"] = spy
    ALL_MASK_ATTENTION_FUNCTIONS["spy"] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    model.model.visual.set_attn_implementation("spy")
    with attach(model, FlowCut(target_num=6, decoder_layer=None)) as handle:
        model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        seen.clear()
        model(**inputs)
        images = handle.trace.images
    first = 1 - depth % 2
    for number, image in enumerate(images):
        importance = None
        for layer in range(first + 1):
            query, key, value = (states[0] for states in seen[layer * 2 + number])
            scale = query.shape[-1] ** -0.5
            relation = torch.softmax(query.mean(1, keepdim=True) @ key.mT * scale, dim=-1).mean(0)[0]
            semantic = torch.softmax(value.mean(1, keepdim=True) @ value.mT, dim=-1).mean(0)[0]
            score = (relation + semantic) * value.mean(0).abs().sum(-1)
            score = score.reshape(-1, 4).mean(1)
            importance = score if importance is None else 0.5 * importance + 0.5 * score
        total = len(relation) // 4
        ratio = -(relation * relation.log()).sum() / torch.tensor(float(len(relation))).log()
        remaining = depth - 1 - first
        cut = round(float((total - 6) / remaining**0.5 * (1 - ratio**2)))
        assert 0 < cut < total - 6
        assert importance is not None
        best = importance.topk(total - cut).indices.sort().values
        assert image.kept_after_layer[first].tolist() == best.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_variable_length_attention_sees_the_same_segments(family: str) -> None:
    """An implementation with ``flash`` in its name is called once for all images, with ``cu_seqlens``."""

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        bounds = kwargs["cu_seq_lens_q"]
        assert kwargs["max_length_q"] == int(bounds.diff().max()) and int(bounds[-1]) == query.shape[2]
        parts = [states.split(bounds.diff().tolist(), dim=2) for states in (query, key, value)]
        sdpa = torch.nn.functional.scaled_dot_product_attention
        outputs = [sdpa(q, k, v, scale=kwargs["scaling"]).transpose(1, 2) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(outputs, dim=1), None

    model = tiny_qwen.tiny_model(family)
    inputs = batch(four(model))
    with attach(model, FlowCut(target_num=5)) as handle:
        expected = model(**inputs).logits
        kept = [image.kept.tolist() for image in handle.trace.images]
    ALL_ATTENTION_FUNCTIONS["our_flash"] = flash
    ALL_MASK_ATTENTION_FUNCTIONS["our_flash"] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    for module in model.model.visual.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "our_flash"
    with attach(model, FlowCut(target_num=5)) as handle:
        torch.testing.assert_close(model(**inputs).logits, expected)
        assert [image.kept.tolist() for image in handle.trace.images] == kept


@torch.no_grad()
def test_failures_are_named_and_leave_nothing_behind() -> None:
    model = tiny_qwen.tiny_model("qwen2_vl")
    inputs = batch(four(model))
    with attach(model, FlowCut(target_num=5)):
        expected = model(**inputs).logits
        broken = {**inputs, "pixel_values": inputs["pixel_values"] * float("nan")}
        with pytest.raises(NonFiniteError, match="Vision layer 0"):
            model(**broken)
        assert torch.equal(model(**inputs).logits, expected)
        block = model.model.visual.blocks[2]
        block.attn.forward = lambda hidden_states, **kwargs: hidden_states
        with pytest.raises(NotAppliedError, match="Vision layer 2"):
            model(**inputs)
        del block.attn.forward
        assert torch.equal(model(**inputs).logits, expected)
