"""Tiny random LLaVA models and inputs; every test that needs a model takes it from here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    SiglipVisionConfig,
    ViTConfig,
)

IMAGE_TOKEN = 127
PAD_TOKEN = 0
GRID = 6
PATCHES = GRID * GRID
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "image_size": 14 * GRID,
    "patch_size": 14,
}
TOWERS: dict[str, type[PreTrainedConfig]] = {
    "clip": CLIPVisionConfig,
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
    "vit": ViTConfig,
    "siglip": SiglipVisionConfig,
}


def tiny_config(tower: str = "clip", **overrides: Any) -> LlavaConfig:
    """A LLaVA of a few thousand weights over a 6 x 6 grid of patches."""
    extra: dict[str, Any] = {} if tower.startswith("dinov2") else {"intermediate_size": 64}
    text = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=PAD_TOKEN,
        eos_token_id=2,
        bos_token_id=1,
    )
    settings: dict[str, Any] = {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full" if tower == "siglip" else "default",
        "image_token_id": IMAGE_TOKEN,
        **overrides,
    }
    return LlavaConfig(vision_config=TOWERS[tower](**SHAPE, **extra), text_config=text, **settings)


def tiny_model(
    tower: str = "clip", seed: int = 0, attention: str = "sdpa", **overrides: Any
) -> LlavaForConditionalGeneration:
    """A tiny model whose attention is concentrated enough for the schedule to cut at every step."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(
        tiny_config(tower, **overrides), attn_implementation=attention
    ).eval()
    return concentrate(model)


def concentrate(model: Any) -> Any:
    """Spread the weights that attention depends on, so that it is concentrated as in a trained model."""
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if any(part in name for part in ("q_proj.weight", "k_proj.weight")):
                parameter.normal_(0.0, 0.5)
        for name, parameter in model.model.language_model.named_parameters():
            if "weight" in name and parameter.dim() == 2:
                parameter.normal_(0.0, 0.2)
    return model


def pictures(count: int, seed: int = 0) -> Tensor:
    """``count`` different random pictures, ``[count, 3, 84, 84]``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, GRID, GRID, generator=generator)
    fine = torch.randn(count, 3, 14 * GRID, 14 * GRID, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=14 * GRID, mode="nearest") + 0.3 * fine


def prompt(images: int = 1, words: int = 6, seed: int = 0, placeholders: int = PATCHES) -> list[int]:
    """Token ids: begin, some words, then each image's placeholders followed by words."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = [1, *torch.randint(3, 120, (2,), generator=generator).tolist()]
    for _ in range(images):
        tokens += [IMAGE_TOKEN] * placeholders
        tokens += torch.randint(3, 120, (words,), generator=generator).tolist()
    if not images:
        tokens += torch.randint(3, 120, (words,), generator=generator).tolist()
    return tokens


def batch(prompts: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Prompts padded to one length, with their attention mask."""
    width = max(len(tokens) for tokens in prompts)
    rows, masks = [], []
    for tokens in prompts:
        padding = [PAD_TOKEN] * (width - len(tokens))
        ones = [1] * len(tokens)
        zeros = [0] * len(padding)
        rows.append(padding + tokens if side == "left" else tokens + padding)
        masks.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def placeholders_of(model: LlavaForConditionalGeneration) -> int:
    """Visual tokens of one uncut image: the patches, and the registers of towers that have them."""
    return PATCHES + getattr(model.config.vision_config, "num_register_tokens", 0)
