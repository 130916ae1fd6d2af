"""A batch gives exactly what single runs give: drawn sizes, budgets, paddings, prompts."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowcut import FlowCut, attach

MODELS: dict[str, Any] = {}


def model_with(tower: str) -> Any:
    if tower not in MODELS:
        MODELS[tower] = tiny.tiny_model(tower)
    return MODELS[tower]


@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@torch.no_grad()
def test_batch_equals_single_runs(tower: str, data: st.DataObject) -> None:
    model = model_with(tower)
    samples = data.draw(st.integers(1, 4))
    images = [data.draw(st.integers(0, 2)) for _ in range(samples)]
    side = data.draw(st.sampled_from(["left", "right"]))
    budget: dict[str, Any] = data.draw(
        st.one_of(
            st.integers(1, tiny.PATCHES - 1).map(lambda target: {"target_num": target}),
            st.floats(0.03, 0.97).map(lambda ratio: {"retain_ratio": ratio}),
        )
    )
    method = FlowCut(
        **budget,
        positions=data.draw(st.sampled_from(["compact", "original"])),
        cut_every=data.draw(st.integers(1, 4)),
        outputs="kept",
    )
    seed = data.draw(st.integers(0, 9999))
    prompts = [tiny.prompt(n, data.draw(st.integers(1, 9)), seed + i) for i, n in enumerate(images)]
    pixels = list(tiny.pictures(sum(images) or 1, seed)[: sum(images)].split(images))
    with attach(model, method) as handle:
        single_kept, single_logits = [], []
        for tokens, picture in zip(prompts, pixels, strict=True):
            given_pixels = {"pixel_values": picture} if len(picture) else {}
            single_logits.append(model(**tiny.batch([tokens]), **given_pixels).logits[0])
            single_kept += [image.kept.tolist() for image in handle.trace.images]
        given_pixels = {"pixel_values": torch.cat(pixels)} if sum(images) else {}
        inputs = tiny.batch(prompts, side)
        logits = model(**inputs, **given_pixels).logits
        kept = [image.kept.tolist() for image in handle.trace.images]
        sequence = handle.trace.sequence
    assert kept == single_kept
    mask = inputs["attention_mask"] if sequence is None else sequence.attention_mask
    for row in range(samples):
        torch.testing.assert_close(logits[row][mask[row].bool()], single_logits[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_follow_their_own_schedules() -> None:
    model = model_with("clip")
    inputs = {**tiny.batch([tiny.prompt(1)] * 4), "pixel_values": tiny.pictures(4)}
    with attach(model, FlowCut(target_num=9)) as handle:
        model(**inputs)
        assert len({tuple(image.tokens_after_layer) for image in handle.trace.images}) > 1
    with attach(model, FlowCut.as_released(9)) as handle:
        model(**inputs)
        assert len({tuple(image.tokens_after_layer) for image in handle.trace.images}) == 1
