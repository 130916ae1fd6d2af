"""The tensors that ask a question in LLaVA's way."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image

from flowcut import UnsupportedModelError
from flowcut.checkpoints.conversations import CHAT_TEMPLATE, SYSTEM
from flowcut.llava_files.prompts import OWN, VICUNA, check_mode, inputs_of

PICTURES = [Image.new("RGB", (90, 90), colour) for colour in ("red", "blue")]
TEXTS = ["what is word3 shown ?", "word1"]


def llavas_ids(processor: Any, text: str, pictured: bool) -> list[int]:
    """LLaVA's own rule: the pieces around the picture are tokenized each for itself, the begin token stands once."""
    pieces = f"{SYSTEM} USER: {'<image>' if pictured else ''}\n{text} ASSISTANT:".split("<image>")
    if not pictured:
        pieces = [f"{SYSTEM} USER: {text} ASSISTANT:"]
    ids = [processor.tokenizer(piece).input_ids for piece in pieces]
    assert all(one[0] == 1 for one in ids)
    joined = ids[0]
    for piece in ids[1:]:
        joined = [*joined, *[tiny.IMAGE_TOKEN] * tiny.PATCHES, *piece[1:]]
    return joined


@pytest.mark.parametrize("pictured", [True, False])
@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_vicunas_conversation_as_llava_tokenizes_it(pictured: bool, template: str | None) -> None:
    processor = tiny_checkpoint.tiny_processor(template)
    inputs = inputs_of(processor, VICUNA, TEXTS, PICTURES if pictured else [None, None])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    for row, mask, text in zip(inputs["input_ids"], inputs["attention_mask"], TEXTS, strict=True):
        assert row[mask.bool()].tolist() == llavas_ids(processor, text, pictured)
        assert mask[-1] == 1, "padding is on the left"
    if pictured:
        assert inputs["pixel_values"].shape == (2, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
    assert ("pixel_values" in inputs) == pictured


def test_the_models_own_prompt_with_and_without_a_picture() -> None:
    processor = tiny_checkpoint.tiny_processor(CHAT_TEMPLATE)
    pictured = inputs_of(processor, OWN, TEXTS, PICTURES)
    assert (pictured["input_ids"] == tiny.IMAGE_TOKEN).sum(dim=1).tolist() == [tiny.PATCHES] * 2
    alone = inputs_of(processor, OWN, TEXTS[:1], PICTURES[:1])
    shown = pictured["input_ids"][0][pictured["attention_mask"][0].bool()]
    assert torch.equal(shown, alone["input_ids"][0])
    plain = inputs_of(processor, OWN, TEXTS, [None, None])
    expected = processor.tokenizer(f"USER: {TEXTS[1]} ASSISTANT:").input_ids
    assert plain["input_ids"][1][plain["attention_mask"][1].bool()].tolist() == expected


def test_a_model_with_another_prompt_is_not_asked_in_vicunas() -> None:
    template = "{% for message in messages %}[INST]{% endfor %}"
    processor = tiny_checkpoint.tiny_processor(template)
    check_mode(processor, OWN)
    with pytest.raises(UnsupportedModelError, match="--conv-mode model"):
        check_mode(processor, VICUNA)
    with pytest.raises(ValueError, match="'llava_v0' is unknown; known: vicuna_v1, model"):
        check_mode(processor, "llava_v0")
    check_mode(tiny_checkpoint.tiny_processor(), VICUNA)
