"""A tiny random model of any image-text-to-text class of transformers, and samples for it.

A class's own default config is shrunk by the tables here; what a class needs besides is in :data:`OVERRIDES`, and how
it takes pictures in :data:`PICTURES`. Processors are not needed: how many placeholders a picture has, the uncut model
says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import families
import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from flowcut.models import NEWER, REFUSED, find_parts
from flowcut.models.classes import ClassSupport
from flowcut.stages.sequence.handing import handed_to

IMAGE, VIDEO = 150, 151
OF_TIMM = ("fast_vlm", "perception_lm")
"""Classes whose vision tower is one of timm's."""

CLASSES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Every class by its config's ``model_type``."""

SIZE, PATCH = 84, 14
DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 160,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "sliding_window": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 2048,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 160,
    "query_pre_attn_scalar": 8,
}
"""What the language model of a default config becomes."""

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "depth": 4,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "image_size": SIZE,
    "patch_size": PATCH,
    "out_hidden_size": 32,
    "projection_dim": 32,
    "vision_output_dim": 32,
    "output_dim": 32,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "downsample_hidden_size": 8,
    "n_window": 8,
    "moe_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
"""What its vision tower becomes."""

BY_LAYER = ("layer_types", "mlp_layer_types", "per_layer_config", "moe_layers", "no_rope_layers")
"""Settings with an entry for every layer, which are left to the class again."""

_MROPE: dict[str, Any] = {"rope_parameters": {"mrope_section": [2, 1, 1]}}
_DEEPSTACK: dict[str, Any] = {"vision_config": {"deepstack_visual_indexes": [0, 2], "num_position_embeddings": 36}}
_MLA: dict[str, Any] = {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_HYBRID: dict[str, Any] = {
    "text_config": {
        "rope_parameters": {"mrope_section": [1, 0, 0]},
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }
}
_MINICPM: dict[str, Any] = {
    **_HYBRID,
    "vision_config": {"insert_layer_id": 1},
    "insert_layer_id": 1,
    "image_token_id": IMAGE,
}
_GLM: dict[str, Any] = {"text_config": _MROPE, "vision_config": {"temporal_patch_size": 1}}
_MARKS: dict[str, Any] = {"vision_start_token_id": 152, "vision_end_token_id": 153, "audio_token_id": 154}
_TILED: dict[str, Any] = {
    "image_grid_pinpoints": [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]],
    "vision_config": {"vision_use_head": False},
}
_SAM: dict[str, Any] = {"output_channels": 8, "global_attn_indexes": [1, 3], "mlp_dim": 64, "window_size": 2}

OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {36: 6}},
    "cohere2_vision": {"alignment_intermediate_size": 64},
    "cohere_compass": {
        **_DEEPSTACK,
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
                for kind in ("sliding_attention", "full_attention")
            },
        },
    },
    "cosmos3_edge": {"text_config": _MROPE, "vision_config": {"num_patches": 36}, "projector_hidden_size": 64},
    "cosmos3_omni": {**_DEEPSTACK, "text_config": _MROPE},
    "deepseek_vl_hybrid": {"high_res_vision_config": {**_SAM, "image_size": 336}},
    "ernie4_5_vl_moe": {"text_config": {"moe_num_shared_experts": 1, "moe_intermediate_size": [32, 32]}},
    "fast_vlm": {
        "vision_config": {
            "architecture": "fastvit_t8",
            "model_args": {"layers": [1, 1, 1, 1], "embed_dims": [4, 8, 16, 32]},
            "hidden_size": 64,
        }
    },
    "gemma3": {"mm_tokens_per_image": 9, "vision_config": {"vision_use_head": False}},
    "gemma4": {
        "vision_config": {
            **{name: TOWER[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")},
            **{name: TOWER[name] for name in ("num_attention_heads", "num_key_value_heads", "patch_size")},
            "model_type": "gemma4_vision",
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        }
    },
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": {**_GLM, "text_config": {"rope_parameters": {"mrope_section": [1, 1, 0]}, "first_k_dense_replace": 1}},
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "got_ocr2": {"vision_config": {**_SAM, "image_size": 224}},
    "hunyuan_vl": {
        "text_config": {"head_dim": 8, "rope_parameters": {"mrope_section": [1, 1, 1, 1]}},
        "vision_config": {"text_hidden_size": 32, "temporal_patch_size": 1, "max_image_size": 112},
    },
    "idefics2": {"perceiver_config": {"hidden_size": 32, "resampler_n_latents": 6, "resampler_n_heads": 4}},
    "janus": {
        "vision_config": {"projection_dim": 32, "num_image_tokens": 36},
        "vq_config": {"embed_dim": 8, "base_channels": 32, "channel_multiplier": [1, 1], "projection_dim": 32},
    },
    "kimi_k25": {
        "text_config": {**_MLA, "first_k_dense_replace": 1},
        "projection_hidden_size": 32,
        "vision_config": {"pos_emb_height": 8, "pos_emb_width": 8},
    },
    "llava_next": _TILED,
    "llava_next_video": _TILED,
    "llava_onevision": _TILED,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "minimax_m3_vl": {
        "text_config": {"dense_intermediate_size": 64, "shared_intermediate_size": 32, "rotary_dim": 4},
        "projector_hidden_size": 32,
        "merged_hidden_size": 128,
    },
    "molmo2": {
        "adapter_config": {"vision_feature_layer": [3, 2], "text_hidden_size": 32},
        "vision_config": {"num_position_embeddings": 36, "image_size": [SIZE, SIZE]},
        "image_patch_id": IMAGE,
    },
    "muse_glimmer": {"out_hidden_size": 128, "projector_hidden_size": 32},
    "ovis2": {
        "vision_config": {"vocab_size": 64, "hidden_stride": 2},
        "hidden_size": 32,
        "visual_indicator_token_ids": [152, 153, 154, 155, 156],
    },
    "paligemma": {"vision_config": {"vision_use_head": False}, "projection_dim": 32},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {
                "img_size": SIZE,
                "patch_size": PATCH,
                "embed_dim": 32,
                "depth": 2,
                "num_heads": 4,
                "global_pool": "",
            },
            "hidden_size": 32,
        },
        "projector_pooling_ratio": 2,
    },
    "qianfan_ocr": {"vision_config": {"image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH]}},
    "internvl": {"vision_config": {"image_size": [SIZE, SIZE], "patch_size": [PATCH, PATCH]}},
    "qwen2_5_omni_thinker": {"text_config": _MROPE, **_MARKS, "vision_config": {"fullatt_block_indexes": [1, 3]}},
    "qwen2_5_vl": {"text_config": _MROPE, "vision_config": {"fullatt_block_indexes": [1, 3], "window_size": 56}},
    "qwen2_vl": {"text_config": _MROPE},
    "lfm2_vl": {"vision_config": {"vision_use_head": False, "num_patches": 36}},
    "lfm3_vl": {"text_config": {"layer_types": ["conv", "full_attention"] * 2}},
    "qwen3_5": _HYBRID,
    "qwen3_5_moe": _HYBRID,
    "qwen3_omni_moe_thinker": {**_DEEPSTACK, "text_config": _MROPE, **_MARKS},
    "qwen3_vl": {**_DEEPSTACK, "text_config": _MROPE},
    "qwen3_vl_moe": {**_DEEPSTACK, "text_config": _MROPE},
    "paddleocr_vl": {"text_config": _MROPE},
    "unlimited_ocr": {
        "vision_config": {
            "sam_config": {**_SAM, "image_size": 224, "downsample_channels": [16, 32]},
            "encoder_config": {"image_size": SIZE},
        },
        "text_config": _MLA,
    },
    "shieldgemma2": {"mm_tokens_per_image": 9, "vision_config": {"vision_use_head": False}},
    "vipllava": {"vision_feature_layers": [-2, 2]},
}
"""What a class needs besides, by its path in the config."""


def named(model_type: str) -> Any:
    """A parameter of a test that is skipped by name where the class cannot be had."""
    missing = f"transformers {transformers.__version__} has no {model_type}, or not the one that is supported"
    if model_type in OF_TIMM:
        missing = f"{model_type} needs timm"
    return pytest.param(model_type, marks=pytest.mark.skipif(not installed(model_type), reason=missing))


def installed(model_type: str) -> bool:
    """Whether the installed transformers has the class, in a release with which it is supported, and what it needs."""
    if model_type in OF_TIMM and find_spec("timm") is None:
        return False
    class_name = CLASSES.get(model_type)
    needed = NEWER.get(class_name or "", "0")
    return class_name is not None and Version(transformers.__version__) >= Version(needed)


def shrunk(config: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A config with the sizes of ``table`` in it and in the configs inside it."""
    small: dict[str, Any] = {}
    for name, value in config.items():
        if name in BY_LAYER:
            continue
        if name in table and value is not None:
            number = table[name]
            small[name] = [number] * len(value) if isinstance(value, (list, tuple)) else type(value)(number)
        elif isinstance(value, dict) and not name.startswith("rope_"):
            small[name] = shrunk(value, table)
        else:
            small[name] = value
    return small


def overridden(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with changes, which may reach into the configs inside it."""
    changed = dict(config)
    for name, value in changes.items():
        inner = changed.get(name)
        changed[name] = overridden(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return changed


def tiny_config(model_type: str) -> Any:
    """The config of a tiny model."""
    config_class = getattr(transformers, CLASSES[model_type]).config_class
    default = {name: value for name, value in config_class().to_dict().items() if name != "model_type"}
    for name, value in default.items():
        if isinstance(value, dict):
            default[name] = shrunk(value, DECODER if name == "text_config" else TOWER)
        elif name in ("image_token_id", "image_token_index"):
            default[name] = IMAGE
        elif name in ("video_token_id", "video_token_index"):
            default[name] = VIDEO
    return config_class(**overridden(default, OVERRIDES.get(model_type, {})))


def tiny_model(model_type: str, attention: str = "sdpa") -> Any:
    """A tiny model whose tower attends sharply enough for schedules to cut, and whose answers differ."""
    torch.manual_seed(0)
    model_class = getattr(transformers, CLASSES[model_type])
    model = model_class._from_config(tiny_config(model_type), attn_implementation=attention).eval()
    decoder = {id(parameter) for parameter in base_of(model).get_decoder().parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in decoder or "lm_head" in name:
                if "weight" in name and parameter.dim() == 2:
                    parameter.normal_(0.0, 0.2)
            elif any(part in name for part in ("q_proj.weight", "k_proj.weight", "qkv.weight")):
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() >= 2:
                parameter.normal_(0.0, 0.2)
            elif not parameter.isfinite().all():
                parameter.zero_()
    return model


def base_of(model: nn.Module) -> Any:
    """The module that joins images and text."""
    inner = [
        module
        for module in model.modules()
        if hasattr(type(module), "get_image_features")
        and not any(hasattr(type(child), "get_image_features") for child in module.children())
    ]
    return inner[0]


def support_of(model_type: str) -> ClassSupport:
    """What can be cut in a class, as ``attach`` finds it on a tiny model without weights."""
    class_name = CLASSES[model_type]
    if class_name in REFUSED:
        return ClassSupport(model_type, class_name, reason=REFUSED[class_name])
    if model_type not in TESTED:
        return ClassSupport(
            model_type, class_name, reason=UNTESTED.get(model_type, "no tiny model of it was tested yet")
        )
    with torch.device("meta"):
        model = getattr(transformers, class_name)(tiny_config(model_type))
    _, parts = find_parts(model)
    refusals = {stage: parts.refusals.get(stage, "") for stage in ("tower", "projector", "decoder")}
    return ClassSupport(
        model_type, class_name, **refusals, video="video" in parts.placeholders, batch=True, tested=True
    )


def pixels(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of one size."""
    return {"pixel_values": pictures(images, SIZE, SIZE, seed)}


def sized(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of different sizes, filled up to the largest."""
    sizes = torch.tensor([(84, 84), (56, 84), (84, 56)])[(torch.arange(images) + seed) % 3]
    return {"pixel_values": pictures(images, SIZE, SIZE, seed), "image_sizes": sizes}


def packed(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Patches of pictures of different sizes, one behind the other."""
    grids = torch.tensor([(1, 4, 6), (1, 8, 4), (1, 6, 6)])[(torch.arange(images) + seed) % 3]
    config = model.config.vision_config
    frames = getattr(config, "temporal_patch_size", getattr(config, "patch_temporal", 1))
    values = getattr(config, "in_channels", 3) * frames * config.patch_size**2
    generator = torch.Generator().manual_seed(seed)
    patches = int(grids.prod(dim=1).sum())
    # A few bright patches, so that attention has something to look at.
    bright = 1.0 + 3.0 * (torch.rand(patches, 1, generator=generator) > 0.8)
    return {"pixel_values": torch.randn(patches, values, generator=generator) * bright, "image_grid_thw": grids}


def pictures(count: int, height: int, width: int, seed: int) -> Tensor:
    """Random pictures with coarse and fine structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, height // PATCH, width // PATCH, generator=generator)
    fine = torch.randn(count, 3, height, width, generator=generator)
    return nn.functional.interpolate(coarse, size=(height, width), mode="nearest") + 0.3 * fine


def tiled(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of different sizes in five tiles and three."""
    sizes = torch.tensor([(160, 150), (70, 160), (100, 90)])[(torch.arange(images) + seed) % 3]
    return {"pixel_values": pictures(5 * images, SIZE, SIZE, seed).unflatten(0, (images, 5)), "image_sizes": sizes}


def rows(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """A row of pictures for every sample."""
    return {"pixel_values": pictures(images, SIZE, SIZE, seed)[None]}


def two_resolutions(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Every picture twice."""
    low = pictures(images, SIZE, SIZE, seed)
    high = nn.functional.interpolate(low, scale_factor=4, mode="nearest")
    return {"pixel_values": low, "high_res_pixel_values": high}


def large(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of the size of the tower's config."""
    side = model.config.vision_config.image_size
    return {"pixel_values": pictures(images, side, side, seed)}


def padded_patches(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Patches of pictures of different sizes, one row for each, filled up."""
    shapes = torch.tensor([(4, 6), (4, 4), (6, 4)])[(torch.arange(images) + seed) % 3]
    patches = torch.randn(images, 24, 3 * PATCH**2, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(24)[None] < shapes.prod(dim=1)[:, None]
    return {"pixel_values": patches * mask[..., None], "spatial_shapes": shapes, "pixel_attention_mask": mask.long()}


def placed_patches(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Patches of pictures of different sizes with their places, one row for each, filled up."""
    shapes = [[(4, 6), (4, 4), (6, 4)][(number + seed) % 3] for number in range(images)]
    patches = torch.rand(images, 24, 3 * PATCH**2, generator=torch.Generator().manual_seed(seed))
    places = torch.full((images, 24, 2), -1)
    for number, (height, width) in enumerate(shapes):
        grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
        places[number, : height * width] = grid.reshape(-1, 2).flip(1)
    return {"pixel_values": patches, "image_position_ids": places}


def square_patches(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """As :func:`packed`, every patch a small picture."""
    tensors = packed(model, images, seed)
    side = model.config.vision_config.patch_size
    return {**tensors, "pixel_values": tensors["pixel_values"].unflatten(1, (3, side, side))}


def with_merge_sizes(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """As :func:`packed`, with the merge size of every picture."""
    tensors = packed(model, images, seed)
    return {**tensors, "image_merge_sizes": torch.full((images,), 2)}


def strip_of_patches(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Patches of pictures of different sizes side by side in one long picture."""
    shapes = torch.tensor([(8, 12), (8, 8), (12, 12)])[(torch.arange(images) + seed) % 3]
    total = int(shapes.prod(dim=1).sum())
    return {"pixel_values": pictures(1, PATCH, PATCH * total, seed), "target_sizes": shapes}


def named_as_images(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of one size, by the name that older releases give them."""
    new = Version(transformers.__version__) >= Version("5.23")
    return {"pixel_values" if new else "pixel_values_images": pictures(images, SIZE, SIZE, seed)}


def rows_of_tiles(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Pictures of one tile each."""
    return {"pixel_values": pictures(images, SIZE, SIZE, seed)[:, None]}


def pooled_crops(model: Any, images: int, seed: int) -> dict[str, Tensor]:
    """Two crops of every picture, and which patches are pooled to a token."""
    side = SIZE // PATCH
    squares = torch.arange(side * side).reshape(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)
    crops = 2 * images
    return {
        "pixel_values": torch.randn(crops, side**2, 3 * PATCH**2, generator=torch.Generator().manual_seed(seed)),
        "image_token_pooling": (squares + side**2 * torch.arange(crops)[:, None, None]).reshape(-1, 4),
        "image_grids": torch.full((images, 4), side // 2),
    }


PICTURES: dict[str, Callable[[Any, int, int], dict[str, Tensor]]] = {
    "deepseek_vl_hybrid": two_resolutions,
    "gemma4": placed_patches,
    "kimi_k25": square_patches,
    "llava": pixels,
    "llava_next": tiled,
    "llava_next_video": tiled,
    "llava_onevision": tiled,
    "got_ocr2": large,
    "pp_chart2table": large,
    "idefics2": rows,
    "idefics3": rows,
    "smolvlm": rows,
    "lfm2_vl": padded_patches,
    "minicpmv4_6": strip_of_patches,
    "minicpmv4_7": strip_of_patches,
    "molmo2": pooled_crops,
    "paddleocr_vl": square_patches,
    "perception_lm": rows_of_tiles,
    "video_llama_3": with_merge_sizes,
    "video_llava": named_as_images,
}
"""How a class takes pictures, where its arguments do not tell."""


def pictures_for(model: Any, model_type: str, images: int, seed: int) -> dict[str, Tensor]:
    """The tensors of so many pictures."""
    arguments = inspect.signature(base_of(model).get_image_features).parameters
    usual = packed if "image_grid_thw" in arguments else sized if "image_sizes" in arguments else pixels
    return PICTURES.get(model_type, usual)(model, images, seed)


@torch.no_grad()
def encoded(model: Any, tensors: dict[str, Tensor]) -> Any:
    """What the uncut model's encoder gives for the pictures of a call."""
    base = base_of(model)
    call = {"input_ids": torch.zeros(1, 2).long(), **tensors}
    handed = handed_to(base, "get_image_features", call)
    assert handed is not None
    return base.get_image_features(*handed[0], **{**handed[1], "return_dict": True})


def sample(model: Any, model_type: str, images: int, seed: int, words: int = 5) -> families.Sample:
    """A prompt with so many pictures."""
    tensors = pictures_for(model, model_type, images, seed) if images else {}
    counts = [len(one) for one in encoded(model, tensors).pooler_output] if images else []
    return {"input_ids": families.prompt([(IMAGE, count) for count in counts], words, seed), **tensors}


def together(model: Any, samples: list[families.Sample], side: str = "left") -> dict[str, Tensor]:
    """Samples as a padded batch, with token types where the model reads them."""
    inputs = tiny.batch([one["input_ids"] for one in samples], side)
    for name in sorted({name for one in samples for name in one} - {"input_ids"}):
        tensors = [one.get(name) for one in samples]
        if name == "image_token_pooling":
            tensors = numbered_on(samples)
        by_sample = name == "pixel_values" and model.config.model_type in BY_SAMPLE
        inputs[name] = rows_of(tensors) if by_sample else joined([one for one in tensors if one is not None])
    arguments = inspect.signature(base_of(model).forward).parameters
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in arguments:
            inputs[name] = (inputs["input_ids"] == IMAGE).long()
    return inputs


def numbered_on(samples: list[families.Sample]) -> list[Tensor | None]:
    """Numbers of patches, counted over the crops of all samples."""
    numbers: list[Tensor | None] = []
    before = 0
    for one in samples:
        own = one.get("image_token_pooling")
        numbers.append(None if own is None else own + before)
        before += 0 if own is None else one["pixel_values"].shape[:2].numel()
    return numbers


def joined(tensors: list[Tensor]) -> Tensor:
    """The tensors of samples in one."""
    first = tensors[0]
    # Patches may stand side by side in one long picture.
    long = first.dim() == 4 and first.shape[-2] == PATCH and first.shape[-1] != PATCH
    return torch.cat(tensors, dim=-1 if long else 0)


def rows_of(tensors: list[Tensor | None]) -> Tensor:
    """A row of pictures for every sample, filled up with empty ones."""
    given = [tensor for tensor in tensors if tensor is not None]
    most = max(len(tensor[0]) for tensor in given)
    filled = given[0].new_zeros(len(tensors), most, *given[0].shape[2:])
    for row, tensor in zip(filled, tensors, strict=True):
        if tensor is not None:
            row[: len(tensor[0])] = tensor[0]
    return filled


BY_SAMPLE = ("granite_docling", "idefics2", "idefics3", "smolvlm")
"""Classes that hand out the features of all pictures of a sample in one."""

TESTED: list[str] = [
    "aria",
    "aya_vision",
    "cohere2_vision",
    "cohere_compass",
    "cosmos3_edge",
    "cosmos3_omni",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "exaone4_5",
    "fast_vlm",
    "gemma3",
    "gemma4",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "glmga",
    "hyperclovax_vision_v2",
    "idefics2",
    "idefics3",
    "internvl",
    "janus",
    "kimi_k25",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m3_vl",
    "mistral3",
    "molmo2",
    "muse_glimmer",
    "ovis2",
    "paddleocr_vl",
    "paligemma",
    "perception_lm",
    "qianfan_ocr",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "shieldgemma2",
    "smolvlm",
    "unlimited_ocr",
    "video_llama_3",
    "video_llava",
    "vipllava",
]
"""The classes with a tiny model here; older releases of transformers do not have all of them."""

_HEADED = "its head is inside the module that joins images and text, which is refused"
_UNBUILT = "no tiny model of it could be made from its default config yet"
_TIMM = "its tower is one of timm's, with convolutions, and it was not tested"

UNTESTED: dict[str, str] = {
    "dots3_note": _UNBUILT,
    "ernie4_5_vl_moe": "its experts are chosen by token types (moe_mm_token_type_ids), and it was not tested",
    "gemma3n": _TIMM,
    "glm5_next": _UNBUILT,
    "granite4_vision": "it adds features of its tower to several decoder layers, and hands none out as pooler_output",
    "hunyuan_vl": "it counts positions along four axes, which is refused",
    "hy_v4_vl": _UNBUILT,
    "inkling2": _UNBUILT,
    "inkling2_loop": _UNBUILT,
    "inkling_mm_model": _UNBUILT,
    "llama4": "one forward maps features, joins them with text and computes logits: nothing can be cut between",
    "mistral_large4": _UNBUILT,
    "muse_spark": _UNBUILT,
    "nemotron_h_omni": _HEADED,
    "qwen4_exp": _UNBUILT,
    "step3p7": _UNBUILT,
}
"""Why other classes that transformers has are not among them."""
