"""A LLaVA as deep as LLaVA-1.5 (24 + 32 layers) and very narrow: what a pass asks of a device, at no cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import tiny
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut.measure.kernels import KernelCounter
from flowcut.stages.sequence.cache_argument import CACHE

GRID = 24
PATCHES = GRID * GRID
TARGET = 64
WORDS = 31


@cache
def model() -> Any:
    """The model; its attention is concentrated, so that FlowCut's schedule cuts at every step."""
    torch.manual_seed(0)
    narrow: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    vision = CLIPVisionConfig(**narrow, num_hidden_layers=24, image_size=14 * GRID, patch_size=14)
    text = LlamaConfig(
        **narrow, vocab_size=128, num_hidden_layers=32, num_key_value_heads=2, pad_token_id=tiny.PAD_TOKEN
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=tiny.IMAGE_TOKEN)
    return tiny.concentrate(LlavaForConditionalGeneration._from_config(config).eval())


def inputs(images: int = 1) -> dict[str, Tensor]:
    """A batch of prompts with one picture each."""
    generator = torch.Generator().manual_seed(1)
    ids = [1, *[tiny.IMAGE_TOKEN] * PATCHES, *range(3, 3 + WORDS)]
    return {
        "input_ids": torch.tensor([ids] * images),
        "attention_mask": torch.ones(images, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(images, 3, 14 * GRID, 14 * GRID, generator=generator),
    }


@dataclass(frozen=True)
class Counts:
    """What was counted: of a prefill, from pixels to logits, and of one step behind it."""

    prefill: KernelCounter
    step: KernelCounter


@torch.no_grad()
def count(images: int = 1) -> Counts:
    """Count on the model as it is attached now; the passes before have filled what is computed once."""
    given = inputs(images)
    model()(**given, logits_to_keep=1)
    with KernelCounter() as prefill:
        answer = model()(**given, use_cache=True, logits_to_keep=1)
    columns = given["input_ids"].shape[1]
    for extra in (1, 2):
        with KernelCounter() as step:
            model()(
                input_ids=given["input_ids"][:, -1:],
                attention_mask=torch.ones(images, columns + extra, dtype=torch.long),
                use_cache=True,
                **{CACHE: answer.past_key_values},
            )
    return Counts(prefill, step)
