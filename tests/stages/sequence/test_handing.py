"""What reaches the vision tower through the gate: exactly what reaches it uncut, on every family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import families
import pytest
import tiny
import torch
import zoo
from torch import Tensor

from flowcut import DivPrune, FastV, FlowCut, Method, attach
from flowcut.models import find_parts
from flowcut.stages.sequence.handing import StandIn

KEYWORDS: tuple[dict[str, Any], ...] = (
    {},
    {"interpolate_pos_encoding": True},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"vision_feature_layer": -3},
    {"vision_feature_select_strategy": "full"},
    {"vision_aspect_ratio": "anyres_max_1"},
    {"a_keyword_of_somebody_else": 3},
)
METHODS: tuple[type[Method], ...] = (FlowCut, DivPrune, FastV)
"""A cut in the tower, behind the projector, inside the language model."""

Outcome = Tensor | type[Exception]


def outcome(model: Any, inputs: dict[str, Any]) -> Outcome:
    """The logits, or what was raised."""
    try:
        with torch.no_grad():
            logits: Tensor = model(**inputs).logits
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        return type(error)
    return logits


def same(one: Outcome, other: Outcome) -> bool:
    """Whether the logits are equal bit for bit, or the same was raised."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one is other


def seen_by_towers(model: Any, inputs: dict[str, Any]) -> tuple[Outcome, list[dict[str, Any]]]:
    """A call's outcome, and the keyword arguments with which it calls the towers."""
    seen: list[dict[str, Any]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append({name: value for name, value in kwargs.items() if not isinstance(value, Tensor)})

    towers = find_parts(model)[1].towers
    handles = [tower.module.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for tower in towers]
    try:
        return outcome(model, inputs), seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", zoo.CASES)
def test_every_keyword_that_the_uncut_call_hands_to_the_tower_reaches_it(name: str) -> None:
    case = zoo.case(name)
    inputs = case.together(case.samples)
    for keyword in KEYWORDS:
        expected, handed = seen_by_towers(case.model, {**inputs, **keyword})
        with attach(case.model, FlowCut(retain_ratio=1.0)):
            found, reached = seen_by_towers(case.model, {**inputs, **keyword})
        assert same(found, expected), keyword
        if isinstance(expected, Tensor):
            assert reached == handed, keyword
        assert handed


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2", "vit"])
@torch.no_grad()
def test_a_larger_picture_is_cut_where_the_tower_interpolates_its_positions(tower: str) -> None:
    model = zoo.llava(tower).model
    pixels = torch.nn.functional.interpolate(tiny.pictures(2), size=14 * 8, mode="nearest")
    larger = {"interpolate_pos_encoding": True}
    with attach(model, FlowCut(retain_ratio=1.0)):
        count = len(model.model.get_image_features(pixels, **larger).pooler_output[0])
    prompts = [tiny.prompt(seed=seed, placeholders=count) for seed in (0, 1)]
    inputs = {**tiny.batch(prompts, "left"), "pixel_values": pixels, **larger}
    try:
        uncut = model(**inputs).logits
    except (ValueError, RuntimeError):
        pytest.skip("this version of transformers does not hand the keyword to the tower")
    for method in METHODS:
        with attach(model, method(retain_ratio=1.0)):
            assert torch.equal(model(**inputs).logits, uncut)
        with attach(model, method(target_num=9)) as handle:
            batched = model(**inputs).logits
            assert handle.trace.sequence is not None
            assert handle.trace.sequence.stretches[-1].image.ge(0).sum(dim=1).tolist() == [9, 9]
            for row, prompt in enumerate(prompts):
                one = {**tiny.batch([prompt], "left"), "pixel_values": pixels[row : row + 1], **larger}
                torch.testing.assert_close(batched[row, -1], model(**one).logits[0, -1], rtol=1e-5, atol=1e-5)


def nothing(name: str) -> Iterator[dict[str, Tensor]]:
    """The ways to give a family no image, or no video, in tensors of its own form."""
    side = zoo.SIDE * 2 if name in ("idefics3", "internvl") else zoo.SIDE
    if name.startswith("qwen"):
        for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            yield {pixels: torch.zeros(0, 1176), grid: torch.zeros(0, 3, dtype=torch.long)}
        return
    sizes = {"image_sizes": torch.zeros(0, 2, dtype=torch.long)} if name.startswith("llava_") else {}
    if name == "idefics3":
        yield {"pixel_values": torch.zeros(2, 1, 3, side, side)}
        yield {"pixel_values": torch.zeros(2, 0, 3, side, side)}
    else:
        yield {"pixel_values": torch.zeros(0, 3, side, side), **sizes}
    if sizes:
        yield {"pixel_values": torch.zeros(0, zoo.TILES, 3, side, side), **sizes}
    if name in ("llava_onevision", "video_llava"):
        yield {"pixel_values_videos": torch.zeros(0, zoo.FRAMES, 3, side, side)}


@pytest.mark.parametrize("name", zoo.CASES)
def test_no_image_in_a_tensor_of_images_is_what_it_is_uncut(name: str) -> None:
    """LLaVA-NeXT takes it for text; the other models refuse it, and so does an attached one."""
    model = zoo.case(name).model
    text = tiny.batch([families.prompt([], seed=seed, words=3 + seed) for seed in (0, 1)], "left")
    plain = outcome(model, text)
    ways = list(nothing(name))
    assert ways
    for pixels in ways:
        expected = outcome(model, {**text, **pixels})
        if name == "llava_next":
            assert same(expected, plain)
        for method in METHODS:
            with attach(model, method(retain_ratio=0.3)) as handle:
                found = outcome(model, {**text, **pixels})
                assert isinstance(found, Tensor) == isinstance(expected, Tensor)
                if isinstance(expected, Tensor):
                    assert same(found, expected)
                    assert handle.trace.images == []


@torch.no_grad()
def test_a_model_in_use_by_another_thread_is_not_touched_while_its_forward_is_asked() -> None:
    model = tiny.tiny_model()
    before = families.fingerprint(model)
    stand_in = StandIn(model.model, "get_image_features")
    assert stand_in.config is model.config and stand_in.get_image_features is not model.model.get_image_features
    assert families.fingerprint(model) == before
