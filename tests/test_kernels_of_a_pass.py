"""What a pass asks of a device, at LLaVA-1.5's depth: it must not grow."""

from __future__ import annotations

import json
from functools import cache

import deep
import golden
import pytest
import torch

from flowcut import FlowCut, attach, make_method

RECORDED = golden.FOLDER / "kept" / "deep.json"
"""What FlowCut kept, and how many tokens it left behind each layer, before its operations were made fewer."""


@cache
def uncut() -> deep.Counts:
    return deep.count()


@cache
def counted(method: str) -> deep.Counts:
    with attach(deep.model(), make_method(method, target_num=deep.TARGET)):
        return deep.count()


@torch.no_grad()
@pytest.mark.parametrize("together", [1, 3])
def test_flowcut_keeps_what_it_kept(together: int) -> None:
    recorded = json.loads(RECORDED.read_text())
    pixels = deep.inputs(3)["pixel_values"]
    with attach(deep.model(), FlowCut(target_num=deep.TARGET)):
        batches = pixels.split(together)
        images = [image for some in batches for image in deep.model().get_image_features(some).flowcut_images]
    assert [{"after": image.tokens_after_layer, "kept": image.kept.tolist()} for image in images] == recorded


def test_flowcut_s_kernels() -> None:
    assert counted("flowcut").prefill.kernels <= 1.30 * uncut().prefill.kernels
