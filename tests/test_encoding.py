"""The encoder by itself: what it hands out is what the attached model reads, and as much as was said beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import test_every_method as every
import tiny
import torch
import zoo
from torch import Tensor

from flowcut import (
    METHODS,
    CDPruner,
    EncoderHandle,
    FastV,
    FlowCut,
    FlowCutError,
    Method,
    UnsupportedModelError,
    attach,
    attach_encoder,
    detach,
    tokens_for,
)
from flowcut.models import find_parts

WITHOUT_SECOND_CUT = {"flowcut": {"decoder_layer": None}}


def encoded(model: Any, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
    """The images of a call, one entry each, as the base hands them out."""
    base = find_parts(model)[1].base
    known = inspect.signature(type(base).get_image_features).parameters
    given = {name.removesuffix("_images"): value for name, value in tensors.items()}
    features = base.get_image_features(**{name: value for name, value in given.items() if name in known})
    return list(features.pooler_output)


def in_front(name: str, target_num: int) -> Method | None:
    """A method with settings under which it may stand in front of another's language model, if there are any."""
    method = replace(every.make(name, target_num=target_num), **WITHOUT_SECOND_CUT.get(name, {}))
    return None if method.reads_text or method.decoder_layers(True) else method


@pytest.mark.parametrize("name", [name for name in zoo.CASES if name != "video_llava"])
@torch.no_grad()
def test_every_method_hands_out_what_it_says(name: str) -> None:
    model, tensors = zoo.case(name).model, zoo.case(name).together(zoo.case(name).samples[:1])
    whole = encoded(model, tensors)
    height, width = tensors["image_sizes"][0].tolist() if "image_sizes" in tensors else (0, 0)
    numbers = {"num_image_tokens": [len(whole[0])], "num_image_patches": [1]}
    processor = SimpleNamespace(_get_num_multimodal_tokens=lambda image_sizes: numbers)
    tried = 0
    for method_name in sorted(METHODS):
        method = in_front(method_name, every.BUDGET)
        if method is None or not every.supported(method_name, zoo.case(name)):
            continue
        said = tokens_for(model, method, (height, width), processor)
        with attach_encoder(model, method) as handle:
            kept = encoded(model, tensors)
            assert [len(tokens) for tokens in kept] == [image.visual_tokens for image in handle.images]
            assert len(kept[0]) == said < len(whole[0])
        assert not method.cuts_tower or len(handle.images[0].placeholder_kept) == len(whole[0])
        if method.cuts_tower and not method.cuts_projected:
            with attach(model, method):
                assert all(torch.equal(*pair) for pair in zip(kept, encoded(model, tensors), strict=True))
        tried += 1
    assert tried >= 6
    assert all(torch.equal(*pair) for pair in zip(whole, encoded(model, tensors), strict=True))


@torch.no_grad()
def test_the_models_own_forward_takes_a_prompt_of_that_length() -> None:
    model, sample = zoo.case("llava, clip").model, zoo.case("llava, clip").samples[0]
    method = FlowCut(target_num=every.BUDGET)
    with attach(model, method):
        expected = model(input_ids=torch.tensor([sample["input_ids"]]), pixel_values=sample["pixel_values"])
    first = sample["input_ids"].index(tiny.IMAGE_TOKEN)
    count = sample["input_ids"].count(tiny.IMAGE_TOKEN)
    short = [*sample["input_ids"][:first], *[tiny.IMAGE_TOKEN] * tokens_for(model, method, (84, 84))]
    short += sample["input_ids"][first + count :]
    with attach_encoder(model, method):
        got = model(input_ids=torch.tensor([short]), pixel_values=sample["pixel_values"])
    torch.testing.assert_close(got.logits[:, -1], expected.logits[:, -1])


def test_a_config_is_enough() -> None:
    model = zoo.case("llava_next").model
    method = FlowCut(target_num=every.BUDGET, decoder_layer=None)
    assert tokens_for(model.config, method, (100, 90)) == tokens_for(model, method, (100, 90)) == every.BUDGET


@pytest.mark.parametrize(
    ("name", "method", "word"),
    [
        ("llava, clip", CDPruner(target_num=8), "reads the question"),
        ("llava, clip", FastV(target_num=8), "reads the question"),
        ("llava_next", FlowCut(target_num=8), "decoder_layer=none"),
    ],
)
def test_refused_by_name(name: str, method: Method, word: str) -> None:
    model = zoo.case(name).model
    with pytest.raises(UnsupportedModelError, match=word):
        attach_encoder(model, method)
    with pytest.raises(UnsupportedModelError, match=word):
        tokens_for(model, method, (90, 90))


def test_a_processor_is_asked_for_where_it_decides() -> None:
    for name, word in (("qwen2_vl", "any size"), ("internvl", "tiles")):
        method = FlowCut(target_num=8, decoder_layer=None)
        with pytest.raises(ValueError, match=word):
            tokens_for(zoo.case(name).model, method, (90, 90))
    with pytest.raises(ValueError, match="padding_counts"):
        method = FlowCut(target_num=8, decoder_layer=None, padding_counts=True)
        tokens_for(zoo.case("llava_next").model, method, (100, 90))


def test_one_attachment_replaces_the_other() -> None:
    model = zoo.case("llava, clip").model
    encoder = attach_encoder(model, FlowCut(target_num=8))
    assert isinstance(encoder, EncoderHandle)
    assert encoder.attached
    whole = attach(model, FlowCut(target_num=8))
    assert not encoder.attached
    again = attach_encoder(model, FlowCut(target_num=9))
    assert not whole.attached
    with pytest.raises(FlowCutError, match="pooler_output"):
        model.model.get_image_features(pixel_values=tiny.pictures(1, 1), return_dict=False)
    detach(model)
    assert not again.attached
    assert "get_image_features" not in vars(model.model)
