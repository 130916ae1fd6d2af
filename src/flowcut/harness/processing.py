"""Prompts with pictures as the tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..checkpoints.loading import LoadedModel
from ..inputs.prompting import adds_special_tokens


def batch_inputs(loaded: LoadedModel, texts: Sequence[str], images: Sequence[list[Image.Image]]) -> Any:
    """What the processor makes of prompts, padded on the left, on the model's device.

    Args:
        loaded: the model and its processor.
        texts: the prompts.
        images: the pictures of each; of several prompts every one has some.
    """
    several = len(texts) > 1
    pictures: Any = list(images) if several else images[0] or None
    inputs = loaded.processor(
        images=pictures,
        text=list(texts) if several else texts[0],
        return_tensors="pt",
        add_special_tokens=adds_special_tokens(loaded.processor, texts[0]),
        **({"padding": True, "padding_side": "left"} if several else {}),
    )
    return inputs.to(loaded.device, dtype=loaded.dtype)
