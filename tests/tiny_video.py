"""Tiny random checkpoints of the families that take videos, with processors of the model's own kind, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import tiny
import tiny_checkpoint
import tiny_qwen
from transformers import (
    CLIPVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

LLAVA = {"<video>": families.VIDEO_TOKEN, "<image>": tiny.IMAGE_TOKEN}
QWEN = {"<|vision_start|>": tiny_qwen.START, "<|vision_end|>": tiny_qwen.END}
QWEN |= {"<|image_pad|>": tiny_qwen.IMAGE, "<|video_pad|>": tiny_qwen.VIDEO}
PACKED = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
NAMES = ("video_llava", "llava_onevision", *PACKED)
SIDE = 14 * tiny.GRID
QWEN_TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT :"
)


def tiny_model(name: str) -> Any:
    """A model that takes videos."""
    if name in PACKED:
        return tiny_qwen.tiny_model(name)
    text, tokens = families.text_config(), {"image_token_index": tiny.IMAGE_TOKEN}
    tokens["video_token_index"] = families.VIDEO_TOKEN
    if name == "video_llava":
        clip = CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64)
        config = VideoLlavaConfig(vision_config=clip, text_config=text, **tokens)
        return families.build(VideoLlavaForConditionalGeneration, config, ("image_tower", "video_tower"))
    siglip = SiglipVisionConfig(**tiny.SHAPE, intermediate_size=64, vision_use_head=False)
    tiles = {"image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE]], "vision_aspect_ratio": "anyres_max_9"}
    other = LlavaOnevisionConfig(vision_config=siglip, text_config=text, **tokens, **tiles)
    return families.build(LlavaOnevisionForConditionalGeneration, other, ("vision_tower",))


def tiny_processor(name: str) -> Any:
    """The processor that fits :func:`tiny_model`."""
    size = {"height": SIDE, "width": SIDE}
    if name in PACKED:
        packed: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
        packed["size"] = {"shortest_edge": 56 * 56, "longest_edge": 16 * 112 * 112}
        videos = Qwen3VLVideoProcessor if name == "qwen3_vl" else Qwen2VLVideoProcessor
        return PACKED[name](
            image_processor=Qwen2VLImageProcessor(**packed),
            tokenizer=tiny_checkpoint.tiny_tokenizer(QWEN),
            video_processor=videos(**packed),
            chat_template=QWEN_TEMPLATE,
        )
    tokenizer = tiny_checkpoint.tiny_tokenizer(LLAVA)
    if name == "video_llava":
        crop = {"size": {"shortest_edge": SIDE}, "crop_size": size}
        return VideoLlavaProcessor(
            image_processor=VideoLlavaImageProcessor(**crop),
            video_processor=VideoLlavaVideoProcessor(**crop),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
        )
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]]),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer,
        num_image_tokens=tiny.PATCHES,
        vision_feature_select_strategy="full",
    )


def save_checkpoint(folder: Path, name: str = "video_llava") -> Path:
    """Write model and processor into ``folder``."""
    tiny_model(name).save_pretrained(folder)
    tiny_processor(name).save_pretrained(folder)
    return folder
