"""Tiny random checkpoints with the models' own processors, with heads wide enough for vLLM's attention on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import families
import tiny
import tiny_checkpoint
import tiny_qwen
import tiny_video
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

WIDE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""A language model's shape with heads of 32 channels."""

SIDE = tiny_checkpoint.SIZE
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
IMAGE = {"image_token_index": tiny.IMAGE_TOKEN}
SQUARE = {"height": SIDE, "width": SIDE}
TILES: dict[str, Any] = {"size": {"longest_edge": 4 * SIDE}, "max_image_size": {"longest_edge": 2 * SIDE}}
CLIP: dict[str, Any] = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5."""
    vision = CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64)
    config = LlavaConfig(vision_config=vision, text_config=families.text_config(**WIDE), **IMAGE)
    crop = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    processor = LlavaProcessor(image_processor=crop, tokenizer=tiny_checkpoint.tiny_tokenizer(), **CLIP)
    return families.build(LlavaForConditionalGeneration, config, ("vision_tower",)), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT, three or five tiles."""
    vision = CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64)
    text = families.text_config(**WIDE)
    config = LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=PINPOINTS, **IMAGE)
    tiles = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS, do_pad=True
    )
    processor = LlavaNextProcessor(image_processor=tiles, tokenizer=tiny_checkpoint.tiny_tokenizer(), **CLIP)
    return families.build(LlavaNextForConditionalGeneration, config, ("vision_tower",)), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tiny.SHAPE, intermediate_size=64, vision_use_head=False),
        text_config=families.text_config(**WIDE),
        video_token_index=families.VIDEO_TOKEN,
        image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]],
        vision_aspect_ratio="anyres_max_9",
        **IMAGE,
    )
    model = families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",))
    return model, tiny_video.tiny_processor("llava_onevision")


def internvl() -> tuple[Any, Any]:
    """InternVL3, whose tiles stand in one run of placeholders."""
    names = {"<img>": 122, "</img>": 123, "<video>": families.VIDEO_TOKEN, "<IMG_CONTEXT>": tiny.IMAGE_TOKEN}
    tokenizer = tiny_checkpoint.tiny_tokenizer(
        names,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    vision = InternVLVisionConfig(
        **{**tiny.SHAPE, "image_size": [2 * SIDE, 2 * SIDE], "patch_size": [14, 14]}, intermediate_size=64
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=families.text_config(**WIDE),
        image_token_id=tiny.IMAGE_TOKEN,
        image_seq_length=tiny.PATCHES,
    )
    size = {"height": 2 * SIDE, "width": 2 * SIDE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=tiny.PATCHES,
    )
    return families.build(InternVLForConditionalGeneration, config, ("vision_tower",)), processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3, whose tiles stand apart."""
    tiles = Idefics3ImageProcessor(**TILES)
    processor = Idefics3Processor(image_processor=tiles, tokenizer=marked(), image_seq_len=tiny.PATCHES)
    return shuffled(Idefics3Config, Idefics3ForConditionalGeneration), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM, of the same form as Idefics3."""
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**TILES),
        tokenizer=marked(),
        video_processor=SmolVLMVideoProcessor(**TILES),
        image_seq_len=tiny.PATCHES,
    )
    return shuffled(SmolVLMConfig, SmolVLMForConditionalGeneration), processor


def shuffled(config_class: Any, model_class: Any) -> Any:
    """A model whose patches are joined in squares of four."""
    config = config_class(
        vision_config={**tiny.SHAPE, "intermediate_size": 64, "image_size": 2 * SIDE},
        text_config=families.text_config(**WIDE),
        image_token_id=tiny.IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=tiny.PAD_TOKEN,
    )
    return families.build(model_class, config, ("vision_model",))


def marked() -> Any:
    """A tokenizer with the marks around Idefics3's tiles."""
    names = {"<fake_token_around_image>": 110, "<global-img>": 111, "<end_of_utterance>": 112}
    names |= {f"<row_{row}_col_{column}>": 112 + 3 * row + column for row in (1, 2) for column in (1, 2)}
    return tiny_checkpoint.tiny_tokenizer({**names, "<image>": tiny.IMAGE_TOKEN})


def gemma3() -> tuple[Any, Any]:
    """Gemma 3, whose visual tokens see one another; its tower's patches are pooled in squares of four."""
    names = {"<start_of_image>": 110, "<end_of_image>": 111, "<image_soft_token>": tiny.IMAGE_TOKEN}
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    text = families.text_config(**WIDE).to_dict()
    text = {name: text[name] for name in ("vocab_size", "intermediate_size", "num_hidden_layers", *WIDE)}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(
            **{**tiny.SHAPE, "image_size": 2 * SIDE}, intermediate_size=64, vision_use_head=False
        ),
        text_config=Gemma3TextConfig(
            **text,
            head_dim=32,
            query_pre_attn_scalar=32,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=64,
            max_position_embeddings=2048,
        ),
        mm_tokens_per_image=tiny.PATCHES,
        image_token_index=tiny.IMAGE_TOKEN,
        boi_token_index=110,
        eoi_token_index=111,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 2 * SIDE, "width": 2 * SIDE}),
        tokenizer=tiny_checkpoint.tiny_tokenizer(names, extra_special_tokens=tokens),
        image_seq_length=tiny.PATCHES,
    )
    return families.build(Gemma3ForConditionalGeneration, config, ("vision_tower",)), processor


def qwen(name: str) -> tuple[Any, Any]:
    """Qwen2-VL and its like, whose positions are places in a picture."""
    sections = {"type": "default", "mrope_section": [4, 6, 6], "rope_type": "default"}
    wide = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": sections}
    if name == "qwen3_vl":
        wide["head_dim"] = 32
    return tiny_qwen.tiny_model(name, **wide), tiny_video.tiny_processor(name)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "qwen2_vl": partial(qwen, "qwen2_vl"),
    "qwen2_5_vl": partial(qwen, "qwen2_5_vl"),
    "qwen3_vl": partial(qwen, "qwen3_vl"),
}

SEE_ALL = ("gemma3",)
"""Families whose visual tokens see one another, which vLLM's attention on a CPU does not let them."""

PICTURES: dict[str, str] = {
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>"),
}
"""What a prompt has for a picture, where it is not ``<image>``."""
