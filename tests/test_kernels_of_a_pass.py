"""What a pass asks of a device, at LLaVA-1.5's depth: it must not grow."""

from __future__ import annotations

import json
from functools import cache

import deep
import fused
import golden
import pytest
import torch

from flowcut import METHODS, FlowCut, attach, make_method

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


FIXED = "flowcut(schedule=(79,64,51,40,52,34,48,43,33,42,26))"

KERNELS = {
    "flowcut": 0.27,
    FIXED: 0.24,
    # Several operations for every token kept, 64 here: each choice depends on the one before. Finding the best, looking
    # it up and comparing the others with it are three, which is all that DivPrune needs; 12% alone.
    "scope": 0.32,
    "cdpruner": 0.345,
    "flowcut_plus": 0.37,
    # 64 rounds, in each of which eight tokens go; four operations a round.
    "vispruner": 0.195,
    # A merge in every layer.
    "tome": 0.80,
}
"""Of a prefill, how many more than the uncut model's at most, as a share of its; 0.15 where nothing is said."""

WAITS = {"flowcut": 11, FIXED: 0, "pyramiddrop": 7, "sparsevlm": 9, "fastv": 4, "cdpruner": 5, "uniform": 5}
"""Of a prefill, how many more than the uncut model's; 2 where nothing is said."""


@pytest.mark.parametrize("method", [*METHODS, FIXED])
def test_what_a_method_asks_for_does_not_grow(method: str) -> None:
    prefill, step = counted(method).prefill, counted(method).step
    assert prefill.kernels <= (1 + KERNELS.get(method, 0.15)) * uncut().prefill.kernels
    assert prefill.waits <= uncut().prefill.waits + WAITS.get(method, 2)
    assert step.kernels <= uncut().step.kernels + 5
    assert step.waits <= uncut().step.waits


@pytest.mark.compiled
@pytest.mark.parametrize("method", ["scope", "cdpruner", "flowcut_plus", "vispruner"])
def test_a_compiled_choice_asks_for_at_most_15_percent_more(method: str) -> None:
    with attach(deep.model(), make_method(method, target_num=deep.TARGET)), fused.counted_loops() as loops:
        with torch.no_grad():
            deep.model()(**deep.inputs(), logits_to_keep=1)
        of_choice = sum(loops.by_name.values())
        prefill = deep.count().prefill
    assert of_choice > 64
    # Of the operations that the compiled loops take the place of, none is counted.
    assert prefill.kernels < 1.1 * uncut().prefill.kernels
    assert prefill.kernels + of_choice <= 1.15 * uncut().prefill.kernels
