"""Tiny random Qwen2-VL, Qwen2.5-VL and Qwen3-VL models with prompts, images and videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, VIDEO, PAD = 155, 156, 0
START, END = 150, 151
TEXT: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3], "rope_type": "default"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}
TOWER: dict[str, Any] = {"depth": 6, "num_heads": 4, "in_channels": 3, "patch_size": 14}
TOKENS = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
}
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def tiny_model(family: str, attention: str = "sdpa", depth: int = 6, seed: int = 0, **language: Any) -> Any:
    """A model of a few thousand weights whose attention is concentrated enough for the schedule to cut.

    Args:
        language: of its language model, where it shall differ from :data:`TEXT`.
    """
    torch.manual_seed(seed)
    text = {**TEXT, **language}
    tower = {**TOWER, "depth": depth}
    model: Any
    if family == "qwen2_vl":
        tower.update(embed_dim=32, hidden_size=64, mlp_ratio=2)
        config = Qwen2VLConfig(vision_config=tower, text_config=text, **TOKENS)
        model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    elif family == "qwen3_vl":
        tower.update(hidden_size=32, intermediate_size=64, out_hidden_size=64, deepstack_visual_indexes=[0, 2, 4])
        newest = Qwen3VLConfig(vision_config=tower, text_config={"head_dim": 16, **text}, **TOKENS)
        model = Qwen3VLForConditionalGeneration._from_config(newest, attn_implementation=attention)
    else:
        tower.update(hidden_size=32, intermediate_size=64, out_hidden_size=64)
        tower.update(window_size=112, fullatt_block_indexes=[2, 5])
        other = Qwen2_5_VLConfig(vision_config=tower, text_config=text, **TOKENS)
        model = Qwen2_5_VLForConditionalGeneration._from_config(other, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.model.visual.named_parameters():
            if "qkv.weight" in name:
                parameter.normal_(0.0, 0.4)
            if "qkv.bias" in name:
                parameter.normal_()
        for name, parameter in model.model.language_model.named_parameters():
            if "weight" in name and parameter.dim() == 2:
                parameter.normal_(0.0, 0.2)
    model.generation_config.eos_token_id = None
    # A random model may well answer with a placeholder, which without a cache asks for one more image.
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model.eval()


@dataclass(frozen=True)
class Sample:
    """One prompt: token ids, and the raw patches and grids of its images and videos."""

    tokens: list[int]
    images: list[tuple[Tensor, tuple[int, int, int]]]
    videos: list[tuple[Tensor, tuple[int, int, int]]]


def patches(grid: tuple[int, int, int], seed: int) -> Tensor:
    """Raw patches of one image or video, ``[patches, 1176]``."""
    generator = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1] * grid[2]
    return torch.randn(count, 1, generator=generator) + 0.5 * torch.randn(count, 1176, generator=generator)


def sample(
    images: list[tuple[int, int, int]],
    videos: list[tuple[int, int, int]],
    words: int,
    seed: int,
    frames_apart: bool = False,
) -> Sample:
    """A prompt with words before, between and behind its images and videos, or (Qwen3-VL) the videos' frames."""
    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> list[int]:
        return torch.randint(3, 140, (count,), generator=generator).tolist()

    tokens = text(3)
    for token, grids in ((IMAGE, images), (VIDEO, videos)):
        for time, height, width in grids:
            for _ in range(time if frames_apart else 1):
                count = height * width // 4 if frames_apart else time * height * width // 4
                tokens += [START, *[token] * count, END, *text(2)]
    tokens += text(words)
    return Sample(
        tokens,
        [(patches(grid, seed + number), grid) for number, grid in enumerate(images)],
        [(patches(grid, seed + 50 + number), grid) for number, grid in enumerate(videos)],
    )


def batch(samples: list[Sample], side: str = "left") -> dict[str, Tensor]:
    """Model inputs, padded to one length."""
    length = max(len(sample.tokens) for sample in samples)
    rows, masks = [], []
    for given in samples:
        padding, ones = [PAD] * (length - len(given.tokens)), [1] * len(given.tokens)
        zeros = [0] * len(padding)
        rows.append(padding + given.tokens if side == "left" else given.tokens + padding)
        masks.append(zeros + ones if side == "left" else ones + zeros)
    ids = torch.tensor(rows)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor(masks),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    images = [image for given in samples for image in given.images]
    videos = [video for given in samples for video in given.videos]
    if images:
        inputs["pixel_values"] = torch.cat([pixels for pixels, _ in images])
        inputs["image_grid_thw"] = torch.tensor([grid for _, grid in images])
    if videos:
        inputs["pixel_values_videos"] = torch.cat([pixels for pixels, _ in videos])
        inputs["video_grid_thw"] = torch.tensor([grid for _, grid in videos])
    return inputs


def four(model: Any) -> list[Sample]:
    """Four different samples: one image, two images, none, a video with an image."""
    frames_apart = model.config.model_type == "qwen3_vl"
    return [
        sample([(1, 8, 12)], [], 4, seed=1),
        sample([(1, 10, 6), (1, 6, 14)], [], 7, seed=2),
        sample([], [], 9, seed=3),
        sample([(1, 12, 10)], [(3, 6, 10)], 5, seed=4, frames_apart=frames_apart),
    ]
