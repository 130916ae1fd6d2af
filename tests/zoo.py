"""A tiny model of every family with two samples of different images, for tests that go over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import families
import tiny
import tiny_qwen
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

SIDE = 14 * tiny.GRID
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
TILES = 5
FRAMES = 2
DEPTH = 4


@dataclass(frozen=True)
class Case:
    """A model and what to ask it.

    Attributes:
        samples: what ``together`` makes a batch of.
        together: a padded batch from samples.
    """

    model: Any
    samples: list[Any]
    together: Callable[..., dict[str, Tensor]]


def text_config() -> Any:
    """A language model of three layers, so that two cuts fit between them."""
    return families.text_config(num_hidden_layers=DEPTH)


def llava(tower: str) -> Case:
    """LLaVA-1.5 with one of its towers."""
    config = tiny.tiny_config(tower)
    config.text_config.num_hidden_layers = DEPTH
    model = families.build(tiny.LlavaForConditionalGeneration, config, ("vision_tower",))
    count = tiny.placeholders_of(model)
    samples = [
        {
            "input_ids": tiny.prompt(images, words=4 + images, seed=images, placeholders=count),
            "pixel_values": tiny.pictures(images, images),
        }
        for images in (1, 2)
    ]
    return Case(model, samples, families.collate)


def with_tiles(model: Any, sizes: list[tuple[int, int]], seed: int) -> families.Sample:
    """A prompt with one image of every (height, width), its tiles filled up."""
    tiles = tiny.pictures(len(sizes) * TILES, seed).unflatten(0, (len(sizes), TILES))
    tensors = {"pixel_values": tiles, "image_sizes": torch.tensor(sizes)}
    with torch.no_grad():
        counts = [len(features) for features in model.model.get_image_features(**tensors).pooler_output]
    return {"input_ids": families.prompt([(tiny.IMAGE_TOKEN, count) for count in counts], seed=seed), **tensors}


def llava_next() -> Case:
    """Five tiles and three."""
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64),
        text_config=text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    model = families.build(LlavaNextForConditionalGeneration, config, ("vision_tower",))
    return Case(model, [with_tiles(model, [(100, 90)], 1), with_tiles(model, [(60, 150)], 2)], families.collate)


def llava_onevision() -> Case:
    """Images of different tiles; its tower has no CLS token."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tiny.SHAPE, intermediate_size=64, vision_use_head=False),
        text_config=text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    model = families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",))
    return Case(model, [with_tiles(model, [(160, 150)], 1), with_tiles(model, [(70, 160)], 2)], families.collate)


def video_llava() -> Case:
    """A video, and an image with a video."""
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64),
        text_config=text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
    )
    model = families.build(VideoLlavaForConditionalGeneration, config, ("image_tower", "video_tower"))
    pixels = "pixel_values" if Version(transformers.__version__) >= Version("5.23") else "pixel_values_images"
    video = (families.VIDEO_TOKEN, FRAMES * (tiny.PATCHES + 1))
    samples = [
        {
            "input_ids": families.prompt([(tiny.IMAGE_TOKEN, tiny.PATCHES), video], seed=1),
            pixels: tiny.pictures(1, 1),
            "pixel_values_videos": tiny.pictures(FRAMES, 2)[None],
        },
        {"input_ids": families.prompt([video], seed=2), "pixel_values_videos": tiny.pictures(FRAMES, 3)[None]},
    ]
    return Case(model, samples, families.collate)


def idefics3(config_class: Any = Idefics3Config, model_class: Any = Idefics3ForConditionalGeneration) -> Case:
    """Groups of patches; one row of tiles for each sample. SmolVLM has the same form, in classes of its own."""
    config = config_class(
        vision_config={**tiny.SHAPE, "intermediate_size": 64, "image_size": 2 * SIDE},
        text_config=text_config(),
        image_token_id=tiny.IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=tiny.PAD_TOKEN,
    )
    model = families.build(model_class, config, ("vision_model",))
    samples = [
        {"input_ids": families.prompt([(tiny.IMAGE_TOKEN, tiny.PATCHES)], seed=seed), "pixel_values": large(1, seed)}
        for seed in (1, 2)
    ]

    def together(samples: list[Any], side: str = "left") -> dict[str, Tensor]:
        inputs = families.collate(samples, side)
        pixels = inputs["pixel_values"][:, None]
        mask = torch.ones(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.bool)
        return {**inputs, "pixel_values": pixels, "pixel_attention_mask": mask}

    return Case(model, samples, together)


def internvl() -> Case:
    """Groups of patches behind a CLS token."""
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            **{**tiny.SHAPE, "image_size": [2 * SIDE, 2 * SIDE], "patch_size": [14, 14]}, intermediate_size=64
        ),
        text_config=text_config(),
        image_token_id=tiny.IMAGE_TOKEN,
        image_seq_length=tiny.PATCHES,
    )
    model = families.build(InternVLForConditionalGeneration, config, ("vision_tower",))
    samples = [
        {
            "input_ids": families.prompt([(tiny.IMAGE_TOKEN, tiny.PATCHES)] * tiles, seed=tiles),
            "pixel_values": large(tiles, tiles),
        }
        for tiles in (1, 2)
    ]
    return Case(model, samples, families.collate)


def large(count: int, seed: int) -> Tensor:
    """Pictures of twelve by twelve patches."""
    return torch.nn.functional.interpolate(tiny.pictures(count, seed), scale_factor=2, mode="nearest")


def qwen(family: str) -> Case:
    """Images of different sizes, and a video."""
    model = tiny_qwen.tiny_model(family)
    apart = family == "qwen3_vl"
    samples = [
        tiny_qwen.sample([(1, 8, 12)], [], 4, seed=1),
        tiny_qwen.sample([(1, 12, 10)], [(2, 6, 10)], 5, seed=4, frames_apart=apart),
    ]
    return Case(model, samples, tiny_qwen.batch)


CASES: dict[str, Callable[[], Case]] = {
    "llava, clip": partial(llava, "clip"),
    "llava, siglip": partial(llava, "siglip"),
    "llava, dinov2 with registers": partial(llava, "dinov2_with_registers"),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "video_llava": video_llava,
    "idefics3": idefics3,
    "internvl": internvl,
    "qwen2_vl": partial(qwen, "qwen2_vl"),
    "qwen2_5_vl": partial(qwen, "qwen2_5_vl"),
    "qwen3_vl": partial(qwen, "qwen3_vl"),
}


@cache
def case(name: str) -> Case:
    """One of :data:`CASES`, made once."""
    return CASES[name]()
