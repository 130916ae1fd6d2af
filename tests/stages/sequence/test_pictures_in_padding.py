"""A picture that training code writes into the padding of a batch without pictures, so that the tower runs everywhere.

LLaMA-Factory does so: placeholders behind the text, masked, without labels. Nothing reads them; the loss is that of the
text, the tower takes part in the backward pass.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
import zoo
from torch import Tensor

from flowcut import CDPruner, DivPrune, FastV, FlowCut, Method, PyramidDrop, SparseVLM, VisionZip, attach

METHODS: dict[str, Method] = {
    "tower": FlowCut(target_num=9),
    "tower and decoder": FlowCut(target_num=9, decoder_layer=1),
    "projector": DivPrune(target_num=9),
    "projector, by the text": CDPruner(target_num=9),
    "merged": VisionZip(dominant=6, contextual=3),
    "decoder": FastV(target_num=9),
    "decoder, ahead": PyramidDrop(target_num=9, layers=(1, 2, 3)),
    "decoder, by the text": SparseVLM(target_num=9, layers=(0, 1, 2)),
}


def rows(family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two texts of different length, the shorter with a masked picture behind it; and the same without."""
    if family == "qwen2_5_vl":
        given = tiny_qwen.batch([tiny_qwen.sample([(1, 12, 10)], [], 5, seed=4)])
        pixels: dict[str, Any] = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
        count, token = 30, tiny_qwen.IMAGE
    else:
        pixels, count, token = {"pixel_values": tiny.pictures(1, 3)}, tiny.PATCHES, tiny.IMAGE_TOKEN
    texts = [tiny.prompt(0, 9, 1), tiny.prompt(0, 50, 2)]
    text = tiny.batch(texts, "right")
    labels = text["input_ids"].masked_fill((text["attention_mask"] == 0) | (text["input_ids"] == 1), -100)
    ids = text["input_ids"].clone()
    ids[0, len(texts[0]) : len(texts[0]) + count] = token
    plain = {**text, "labels": labels}
    with_picture = {**plain, "input_ids": ids, **pixels}
    if family == "qwen2_5_vl":
        plain["mm_token_type_ids"] = torch.zeros_like(ids)
        with_picture["mm_token_type_ids"] = (ids == token).int()
    return with_picture, plain


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("llava, clip", name) for name in METHODS), ("qwen2_5_vl", "tower"), ("qwen2_5_vl", "decoder")],
)
def test_the_loss_is_that_of_the_text_and_the_tower_takes_part(family: str, name: str) -> None:
    model = copy.deepcopy(zoo.case(family).model)
    with_picture, plain = rows(family)
    expected = model(**plain)
    uncut = model(**with_picture)
    torch.testing.assert_close(uncut.loss, expected.loss)
    with attach(model, METHODS[name]) as handle:
        found = model(**with_picture, use_cache=False)
        found.loss.backward()
        assert len(handle.trace.images) == 1
    torch.testing.assert_close(found.loss, expected.loss)
    real = plain["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-4, atol=1e-5)
    tower = [weight.grad for path, weight in model.named_parameters() if "vision_tower" in path or "visual" in path]
    taking_part = [gradient for gradient in tower if gradient is not None]
    assert len(taking_part) > len(tower) // 2
    assert all(bool((gradient == 0).all()) for gradient in taking_part)
