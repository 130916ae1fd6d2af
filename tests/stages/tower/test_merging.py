"""Merging in the tower: the weighted sums themselves, gradients, and layers that are computed again for them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import zoo

from flowcut import Method, PruMerge, Scope, ToMe, VisionZip, attach
from flowcut.methods.views import Merge
from flowcut.stages.tower.narrowing import Merging, sources_after


def test_groups_are_merged_whole_behind_the_prefix() -> None:
    states = torch.arange(10.0).reshape(1, 5, 2)
    weights = torch.tensor([[[0.5, 0.5]]])
    merged = Merging(weights, prefix=1, group=2).narrow(states)
    assert merged.tolist() == [[[0, 1], [4, 5], [6, 7]]]


def test_sources_of_two_merges() -> None:
    first = Merge(torch.tensor([[0, 2]]), (2,), torch.tensor([[[1.0, 0.5, 0], [0, 0, 1]]]))
    second = Merge(torch.tensor([[1]]), (1,), torch.tensor([[[0.2, 1.0]]]))
    sources = sources_after(sources_after(None, first), second)
    assert sources is not None and sources.tolist() == [[[True, True, True]]]


@pytest.mark.parametrize("method", [VisionZip(target_num=9), ToMe(target_num=9), Scope(target_num=9)])
@pytest.mark.parametrize("name", ["llava, clip", "qwen2_vl"])
def test_checkpointing_gives_the_same_gradients(name: str, method: Method) -> None:
    case = zoo.CASES[name]()
    model: Any = case.model.train()
    inputs = case.together(case.samples[:1])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with attach(model, method):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append([None if one.grad is None else one.grad.clone() for one in model.parameters()])
        model.zero_grad(set_to_none=True)
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [VisionZip(target_num=9), ToMe(target_num=9), PruMerge(target_num=9)])
@torch.no_grad()
def test_half_precision(method: Method) -> None:
    model = tiny.tiny_model().bfloat16()
    ids = torch.tensor([tiny.prompt()])
    with attach(model, method) as handle:
        logits = model(input_ids=ids, pixel_values=tiny.pictures(1).bfloat16()).logits
    assert bool(logits.isfinite().all()) and len(handle.trace.images[0].kept) == 9
