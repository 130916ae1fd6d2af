"""A question about an image, written the way the model was trained to read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image


def build_prompt(processor: Any, question: str) -> str:
    """The prompt for one image and one question.

    Args:
        processor: a Hugging Face processor. Its chat template is used where it has one; without one the
            prompt takes LLaVA-1.5's form, ``USER: <image>\\n... ASSISTANT:``.
        question: what the user asks.

    Returns:
        The text, with one image placeholder that the processor will expand.

    Raises:
        ValueError: the question is empty.
    """
    question = question.strip()
    if not question:
        raise ValueError("The question is empty. Ask something about the image, such as 'What is shown here?'.")
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    image_token = getattr(processor, "image_token", "<image>")
    return f"USER: {image_token}\n{question} ASSISTANT:"


def model_inputs(processor: Any, image: Image.Image, question: str) -> Any:
    """The tensors that ``generate`` takes, on the CPU.

    Args:
        processor: a Hugging Face processor with a tokenizer.
        image: an RGB picture.
        question: what the user asks.

    Returns:
        A ``BatchFeature`` of one sample: ``input_ids``, ``attention_mask``, ``pixel_values``.

    Raises:
        ValueError: the question is empty.
    """
    return many_inputs(processor, image, [question])


def many_inputs(processor: Any, image: Image.Image, questions: Sequence[str]) -> Any:
    """The same for several questions about one image: one sample each, padded on the left."""
    prompts = [build_prompt(processor, question) for question in questions]
    begin = processor.tokenizer.bos_token
    # Some chat templates write the begin token themselves; the tokenizer would add a second one.
    special = not (begin and prompts[0].startswith(begin))
    padding = {"padding": True, "padding_side": "left"} if len(prompts) > 1 else {}
    images = [[image] for _ in prompts] if len(prompts) > 1 else image
    text = prompts if len(prompts) > 1 else prompts[0]
    return processor(images=images, text=text, return_tensors="pt", add_special_tokens=special, **padding)
