"""Hugging Face's LLaVA classes written in LLaVA's own format, so that its scripts run what was trained here.

The way back of :mod:`.llava`: reading what is written here gives the same weights, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from ..errors import UnsupportedModelError
from .llava import PAD_TOKEN, RENAMES, TOWER_PREFIX
from .llava_format import SELECT_STRATEGIES
from .llava_processor import IMAGE_TOKEN

NAMING_KEYS = (
    "pad_token",
    "image_token",
    "extra_special_tokens",
    "additional_special_tokens",
    "model_specific_special_tokens",
)
"""Where a tokenizer's files name tokens."""

KNOWN_TOWER = "openai/clip-vit-large-patch14-336"
KNOWN_SHAPE = {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
"""LLaVA-1.5's tower; checkpoints in Hugging Face's format do not say its name."""

LANGUAGES = {"llama": ("llava_llama", "LlavaLlamaForCausalLM"), "mistral": ("llava_mistral", "LlavaMistralForCausalLM")}
TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
)


def export_llava(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    vision_tower: str | None = None,
    slow_tokenizer: Path | None = None,
) -> None:
    """Write a model in LLaVA's format: ``config.json``, weights, tokenizer.

    The rows of ``<image>`` and ``<pad>``, which LLaVA's vocabulary does not have, are left out. The tower's weights are
    written too, and ``unfreeze_mm_vision_tower`` is set, so that LLaVA reads these.

    Args:
        model: LLaVA-1.5 or LLaVA-NeXT in Hugging Face's classes, with a CLIP tower.
        processor: the model's, or ``None``; then no tokenizer is written.
        folder: where to; made if it is not there.
        vision_tower: the tower's name for LLaVA, which reads its configuration there; not needed for LLaVA-1.5's own.
        slow_tokenizer: a ``tokenizer.model`` to put beside the weights; LLaVA's scripts load no other.

    Raises:
        UnsupportedModelError: the model has no form in LLaVA's format.
        ValueError: the tower has no known name.
    """
    config = model.config
    check_exportable(model)
    name = vision_tower or known_tower(config.vision_config)
    tokenizer = None if processor is None else processor.tokenizer
    rows = own_rows(model, tokenizer)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = llava_weights(model, rows)
    save_torch_state_dict(state, target, max_shard_size="5GB")
    told = llava_config(config, name, rows, processor, str(model.dtype).removeprefix("torch."))
    (target / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        write_tokenizer(tokenizer, target, rows)
    if slow_tokenizer is not None:
        shutil.copyfile(slow_tokenizer, target / "tokenizer.model")


def check_exportable(model: Any) -> None:
    """Refuse what LLaVA's format cannot say.

    Raises:
        UnsupportedModelError: with what it can.
    """
    if not isinstance(model, (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no form in LLaVA's format; LlavaForConditionalGeneration and "
            "LlavaNextForConditionalGeneration have."
        )
    config: Any = model.config
    text, vision = config.text_config, config.vision_config
    if text.model_type not in LANGUAGES or vision.model_type != "clip_vision_model":
        raise UnsupportedModelError(
            f"LLaVA's scripts read Llama or Mistral behind a CLIP tower; this is {text.model_type} behind "
            f"{vision.model_type}."
        )
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError(f"The language model scales its positions ({rope['rope_type']}); LLaVA's do not.")
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModelError(
            f"The model reads several layers of its tower ({config.vision_feature_layer}), LLaVA's one."
        )


def known_tower(vision: Any) -> str:
    """The name of LLaVA-1.5's tower, if it is that one.

    Raises:
        ValueError: it is another one.
    """
    if any(getattr(vision, key) != value for key, value in KNOWN_SHAPE.items()):
        raise ValueError(
            f"The vision tower is not {KNOWN_TOWER}, and its name is not in the checkpoint. Give it with "
            "--vision-tower, as LLaVA shall read it: a hub id or a folder with its configuration."
        )
    return KNOWN_TOWER


def own_rows(model: Any, tokenizer: Any) -> int:
    """How many rows of the vocabulary are LLaVA's own: those before the tokens that Hugging Face's format added."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    if tokenizer is None:
        return rows
    words = tokenizer.get_vocab()
    added: list[int] = sorted(words[token] for token in (IMAGE_TOKEN, PAD_TOKEN) if token in words)
    if not added or max(place for token, place in words.items() if token not in (IMAGE_TOKEN, PAD_TOKEN)) > added[0]:
        return rows
    return added[0]


def llava_weights(model: Any, rows: int) -> dict[str, Tensor]:
    """The weights under LLaVA's names."""
    back = {new: old for old, new in RENAMES.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower."):
            inner = name.removeprefix("model.vision_tower.").removeprefix("vision_model.")
            state[f"{TOWER_PREFIX}vision_model.{inner}"] = tensor
            continue
        new = next(new for new in back if name.startswith(new))
        full = back[new] + name.removeprefix(new)
        cut = full in ("model.embed_tokens.weight", "lm_head.weight")
        state[full] = tensor[:rows].clone() if cut and len(tensor) > rows else tensor
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def llava_config(config: Any, tower: str, rows: int, processor: Any, dtype: str) -> dict[str, Any]:
    """What LLaVA's ``config.json`` says."""
    text, vision = config.text_config, config.vision_config
    model_type, architecture = LANGUAGES[text.model_type]
    tiles = hasattr(config, "image_grid_pinpoints")
    aspect = "anyres" if tiles else "pad" if getattr(image_processor(processor), "do_pad", False) else None
    strategies = {ours: theirs for theirs, ours in SELECT_STRATEGIES.items()}
    rope = getattr(text, "rope_parameters", None) or {}
    told: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": dtype,
        "vocab_size": rows,
        **{key: getattr(text, key) for key in TEXT_KEYS if getattr(text, key, None) is not None},
        "pad_token_id": 0,
        "rope_theta": rope.get("rope_theta", getattr(text, "rope_theta", 10000.0)),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "image_aspect_ratio": aspect,
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad" if tiles else "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": strategies[config.vision_feature_select_strategy],
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
        "vision_config": described(vision),
    }
    if tiles:
        told["image_grid_pinpoints"] = [[width, height] for height, width in config.image_grid_pinpoints]
    return told


def image_processor(processor: Any) -> Any:
    """The part of a processor that prepares pictures, or ``None``."""
    return getattr(processor, "image_processor", None)


def described(vision: Any) -> dict[str, Any]:
    """The tower's configuration as plain values; LLaVA's scripts do not read it, ours do."""
    told = vision.to_dict()
    return {key: value for key, value in told.items() if not isinstance(value, torch.dtype) and key != "dtype"}


def write_tokenizer(tokenizer: Any, folder: Path, rows: int) -> None:
    """Write the tokenizer without the tokens that are not LLaVA's own."""
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        file = folder / name
        if not file.is_file():
            continue
        told = json.loads(file.read_text(encoding="utf-8"))
        listed = told.get("added_tokens")
        if isinstance(listed, list):
            told["added_tokens"] = [one for one in listed if one["id"] < rows]
        decoder = told.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            told["added_tokens_decoder"] = {key: one for key, one in decoder.items() if int(key) < rows}
        for key in NAMING_KEYS:
            value = told.get(key)
            if value in (IMAGE_TOKEN, PAD_TOKEN) or (isinstance(value, (list, dict)) and IMAGE_TOKEN in str(value)):
                del told[key]
        if name == "added_tokens.json":
            told = {token: place for token, place in told.items() if place < rows}
        file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
