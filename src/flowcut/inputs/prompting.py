"""A question about an image or a video, written the way the model was trained to read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .clips import Clip

TEXT = "text"
"""The kind of a question that is about no image."""


def checked_question(question: str, kind: str = "image") -> str:
    """The question without the space around it.

    Raises:
        ValueError: nothing is left of it, or it holds a byte that is not UTF-8.
    """
    question = question.strip()
    if not question:
        raise ValueError(f"The question is empty. Ask something about the {kind}, such as 'What is shown here?'.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        # Python hands on a byte that it cannot decode as a lone surrogate.
        shown = question.encode(errors="backslashreplace").decode()
        raise ValueError(
            f"The question is not UTF-8 text: {shown}. Type it again, or save its file as UTF-8."
        ) from error
    return question


def build_prompt(processor: Any, question: str, kind: str = "image") -> str:
    """The prompt for one question, as a rule about one image or video.

    Args:
        processor: a Hugging Face processor. Its chat template is used where it has one; without one the
            prompt takes LLaVA-1.5's form, ``USER: <image>\\n... ASSISTANT:``.
        question: what the user asks.
        kind: ``"image"`` or ``"video"``, or ``"text"`` for a question about neither.

    Returns:
        The text, with one placeholder that the processor will expand, but for ``"text"``.

    Raises:
        ValueError: see :func:`checked_question`.
    """
    question = checked_question(question, kind)
    if getattr(processor, "chat_template", None):
        content = [*([] if kind == TEXT else [{"type": kind}]), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    if kind == TEXT:
        return f"USER: {question} ASSISTANT:"
    token = getattr(processor, f"{kind}_token", f"<{kind}>")
    return f"USER: {token}\n{question} ASSISTANT:"


def model_inputs(processor: Any, visual: Image.Image | Clip, question: str) -> Any:
    """The tensors that ``generate`` takes, on the CPU.

    Args:
        processor: a Hugging Face processor with a tokenizer.
        visual: an RGB picture, or the frames of a video.
        question: what the user asks.

    Returns:
        A ``BatchFeature`` of one sample: ``input_ids``, ``attention_mask``, ``pixel_values``
        or ``pixel_values_videos``.

    Raises:
        ValueError: see :func:`checked_question`.
    """
    if isinstance(visual, Clip):
        prompt = build_prompt(processor, question, "video")
        return processor(
            videos=[visual.frames],
            text=[prompt],
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(processor, prompt),
            video_metadata=[visual.metadata],
            do_sample_frames=False,
        )
    return many_inputs(processor, visual, [question])


def many_inputs(processor: Any, image: Image.Image, questions: Sequence[str]) -> Any:
    """The same for several questions about one image: one sample each, padded on the left."""
    return batch_inputs(processor, [image] * len(questions), questions)


def batch_inputs(processor: Any, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
    """The same for several questions, each about an image of its own."""
    prompts = [build_prompt(processor, question) for question in questions]
    special = adds_special_tokens(processor, prompts[0])
    padding = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    pictures = [[image] for image in images] if len(prompts) > 1 else images[0]
    text = prompts if len(prompts) > 1 else prompts[0]
    return processor(images=pictures, text=text, return_tensors="pt", add_special_tokens=special, **padding)


def text_inputs(processor: Any, questions: Sequence[str]) -> Any:
    """The same for questions without an image."""
    prompts = [build_prompt(processor, question, TEXT) for question in questions]
    special = adds_special_tokens(processor, prompts[0])
    padding = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    return processor.tokenizer(prompts, return_tensors="pt", add_special_tokens=special, **padding)


def adds_special_tokens(processor: Any, prompt: str) -> bool:
    """Whether the tokenizer shall write the begin token: not where the chat template already did."""
    begin = processor.tokenizer.bos_token
    return not (begin and prompt.startswith(begin))
