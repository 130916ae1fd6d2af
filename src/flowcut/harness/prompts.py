"""What the harness asks, as prompts and pictures for a processor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

IMAGE_MARK = "<image>"
"""Stands for a picture in the texts of tasks that say where their pictures belong."""

SAMPLING = ("temperature", "top_p", "top_k")
PASSED = ("max_new_tokens", "num_beams", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")
READ = {*SAMPLING, *PASSED, "do_sample", "until"}


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        messages: a conversation, its contents lists of ``{"type": "image"}`` and ``{"type": "text", "text": ...}``.
        images: its pictures, RGB, in their order.
        generation: what the task says about generating.
    """

    messages: list[dict[str, Any]]
    images: list[Image.Image]
    generation: dict[str, Any] = field(default_factory=dict)


def prompt_of_text(text: str, visuals: Sequence[Any] | None, generation: Mapping[str, Any]) -> Prompt:
    """A question of a simple task: its pictures stand where the text marks them, else in front of it."""
    images = [picture_of(visual) for visual in visuals or ()]
    pieces = text.split(IMAGE_MARK)
    if images and len(pieces) == len(images) + 1:
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            content += [{"type": "image"}] if number else []
            content += [{"type": "text", "text": piece}] if piece.strip() else []
    else:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return Prompt([{"role": "user", "content": content}], images, dict(generation))


def prompt_of_messages(messages: Sequence[Mapping[str, Any]], generation: Mapping[str, Any]) -> Prompt:
    """A question of a chat task.

    Raises:
        ValueError: it holds something else than text and pictures.
    """
    images: list[Image.Image] = []
    written: list[dict[str, Any]] = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                images.append(picture_of(part["url"]))
                content.append({"type": "image"})
            elif part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            else:
                raise ValueError(
                    f"flowcut_hf takes pictures and text, and the task holds {part['type']}. Use --model flowcut with "
                    "wrapped=NAME, one of lmms-eval's classes that reads it."
                )
        written.append({"role": message["role"], "content": content})
    return Prompt(written, images, dict(generation))


def picture_of(visual: Any) -> Image.Image:
    """A picture, RGB.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(visual, Image.Image):
        raise ValueError(
            f"flowcut_hf takes pictures, and the task gives {type(visual).__name__} ({str(visual)[:80]!r}). Use "
            "--model flowcut with wrapped=NAME, one of lmms-eval's classes that reads it."
        )
    return visual.convert("RGB")


def written_prompt(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text: by the processor's chat template, or where it has none in LLaVA-1.5's form.

    Raises:
        ValueError: there is no template, and more than one turn.
    """
    if getattr(processor, "chat_template", None):
        return str(processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    if [message["role"] for message in messages] != ["user"]:
        raise ValueError(
            "This model's processor has no chat template, so only single questions can be asked. Save one with it "
            "(processor.chat_template = ...; processor.save_pretrained(...))."
        )
    token = getattr(processor, "image_token", IMAGE_MARK)
    parts = [f"{token}\n" if part["type"] == "image" else part["text"] for part in messages[0]["content"]]
    return f"USER: {''.join(parts)} ASSISTANT:"


def generation_arguments(given: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """What a task says about generating, as ``generate`` takes it: greedy unless its temperature is above 0.

    Args:
        given: the task's ``generation_kwargs``; a name that is not known is told, and left out.
        max_new_tokens: where the task names none.
    """
    unknown = sorted(set(given) - READ)
    if unknown:
        warnings.warn(f"flowcut_hf leaves out what the task says about {', '.join(unknown)}.", stacklevel=2)
    passed = {name: given[name] for name in PASSED if given.get(name) is not None}
    sampled = float(given.get("temperature") or 0) > 0
    choice = {name: given[name] for name in SAMPLING if given.get(name) is not None} if sampled else {}
    return {"max_new_tokens": max_new_tokens, "num_beams": 1, **passed, "do_sample": sampled, **choice}


def until(text: str, given: Mapping[str, Any]) -> str:
    """An answer up to the first of the texts that end it for the task."""
    ends = given.get("until") or ()
    for end in (ends,) if isinstance(ends, str) else ends:
        if end.strip():
            text = text.split(end)[0]
    return text.strip()
