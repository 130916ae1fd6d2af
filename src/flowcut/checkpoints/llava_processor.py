"""What prepares pictures and prompts for a checkpoint in LLaVA's own format, as the original code does."""

from __future__ import annotations

from typing import Any

from transformers import (
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

from .conversations import MISTRAL, QWEN, VICUNA

LlavaKindOfConfig = LlavaConfig | LlavaNextConfig | LlavaOnevisionConfig
LlavaKindOfProcessor = LlavaProcessor | LlavaNextProcessor | LlavaOnevisionProcessor

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<video>"
CONVERSATIONS = {"llama": VICUNA, "mistral": MISTRAL, "qwen2": QWEN}
"""The conversation by the kind of the language model, as LLaVA's scripts choose it."""


def build_processor(original: dict[str, Any], config: LlavaKindOfConfig, tokenizer: Any) -> LlavaKindOfProcessor:
    """The processor of a checkpoint.

    Args:
        original: its ``config.json``.
        config: what that became.
        tokenizer: its tokenizer, with a token for pictures.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    size = vision.image_size
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "image_token": IMAGE_TOKEN,
        "chat_template": CONVERSATIONS[text.model_type],
    }
    form: Any = LlavaProcessor
    pictures: Any
    if isinstance(config, LlavaOnevisionConfig):
        form = LlavaOnevisionProcessor
        # As SigLIP was trained: values from -1 to 1.
        square = {"size": {"height": size, "width": size}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        of_pictures: Any = LlavaOnevisionImageProcessor
        of_videos: Any = LlavaOnevisionVideoProcessor
        pinpoints: Any = config.image_grid_pinpoints
        processor: LlavaOnevisionProcessor = form(
            image_processor=of_pictures(**square, image_grid_pinpoints=pinpoints),
            video_processor=of_videos(**square),
            num_image_tokens=(size // vision.patch_size) ** 2,
            video_token=VIDEO_TOKEN,
            vision_aspect_ratio=config.vision_aspect_ratio,
            **common,
        )
        return processor
    sizes: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if isinstance(config, LlavaNextConfig):
        form = LlavaNextProcessor
        grids: Any = config.image_grid_pinpoints
        pictures = LlavaNextImageProcessor(**sizes, image_grid_pinpoints=grids)
    elif original.get("image_aspect_ratio") == "pad":
        pictures = LlavaImageProcessor(do_pad=True, **sizes)
    else:
        pictures = CLIPImageProcessor(**sizes)
    other: LlavaProcessor | LlavaNextProcessor = form(
        image_processor=pictures, patch_size=vision.patch_size, num_additional_image_tokens=1, **common
    )
    return other
