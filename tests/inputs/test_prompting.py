"""Prompts from questions."""

from __future__ import annotations

import pytest
import tiny
import tiny_checkpoint
from PIL import Image

from flowcut.checkpoints.conversations import CHAT_TEMPLATE
from flowcut.inputs.prompting import build_prompt, model_inputs

TEMPLATE_WITH_BEGIN = "{{ '<s>' }}" + CHAT_TEMPLATE


def test_without_a_template() -> None:
    processor = tiny_checkpoint.tiny_processor()
    assert build_prompt(processor, " what is shown? ") == "USER: <image>\nwhat is shown? ASSISTANT:"


def test_template_of_the_processor() -> None:
    template = "{% for message in messages %}{{ message['role'] }}|<image>|{{ message['content'][1]['text'] }}"
    processor = tiny_checkpoint.tiny_processor(template + "{% endfor %}{{ '>' if add_generation_prompt }}")
    assert build_prompt(processor, "what?") == "user|<image>|what?>"


def test_loaded_llava_template_says_the_same_as_the_fallback() -> None:
    with_template, without = tiny_checkpoint.tiny_processor(CHAT_TEMPLATE), tiny_checkpoint.tiny_processor()
    assert build_prompt(with_template, "what?") == build_prompt(without, "what?")


def test_empty_question() -> None:
    with pytest.raises(ValueError, match="empty"):
        build_prompt(tiny_checkpoint.tiny_processor(), "  ")


def test_a_question_that_is_not_utf_8() -> None:
    typed = b"caf\xe9?".decode("utf-8", "surrogateescape")
    with pytest.raises(ValueError, match=r"not UTF-8 text: caf\\udce9\?"):
        build_prompt(tiny_checkpoint.tiny_processor(), typed)
    assert "café?" in build_prompt(tiny_checkpoint.tiny_processor(), "café?")


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, TEMPLATE_WITH_BEGIN])
def test_inputs_hold_one_image_and_at_most_one_begin_token(template: str | None) -> None:
    inputs = model_inputs(tiny_checkpoint.tiny_processor(template), Image.new("RGB", (90, 90)), "what is shown?")
    tokens = inputs["input_ids"][0].tolist()
    assert tokens.count(tiny.IMAGE_TOKEN) == tiny.PATCHES
    assert tokens.count(1) == 1 and tokens[0] == 1
    assert inputs["pixel_values"].shape == (1, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
