"""What a ``config.json`` in LLaVA's own format says: which model it is, and whether Hugging Face's classes have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError

SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
LIMITED = "anyres_max_"
"""How LLaVA-OneVision's ``image_aspect_ratio`` begins; a number of tiles follows."""


def is_original_llava(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is in LLaVA's own format."""
    return "mm_projector_type" in config or "mm_vision_tower" in config


def cuts_tiles(original: dict[str, Any]) -> bool:
    """Whether a config is that of a model which cuts pictures into tiles: LLaVA-NeXT or LLaVA-OneVision."""
    return str(original.get("mm_patch_merge_type", "flat")) != "flat"


def is_onevision(original: dict[str, Any]) -> bool:
    """Whether a config is that of LLaVA-OneVision: Qwen2 behind SigLIP."""
    return "LlavaQwenForCausalLM" in (original.get("architectures") or ())


def check_format(original: dict[str, Any], folder: Path) -> None:
    """Refuse what this loader would get wrong.

    Raises:
        UnsupportedModelError: see :func:`load_llava`.
    """
    if not is_original_llava(original):
        raise UnsupportedModelError(
            f"{folder} is not in LLaVA's own format (its config has no mm_* keys). Checkpoints in Hugging Face's "
            "format load with LlavaForConditionalGeneration.from_pretrained."
        )
    if original.get("mm_projector_type") != "mlp2x_gelu":
        raise UnsupportedModelError(
            f"mm_projector_type is {original.get('mm_projector_type')!r}; LlavaForConditionalGeneration has the "
            "two-layer MLP of LLaVA-1.5, 'mlp2x_gelu', and no other."
        )
    merge = original.get("mm_patch_merge_type", "flat")
    if merge not in ("flat", "spatial_unpad"):
        raise UnsupportedModelError(
            f"mm_patch_merge_type is {merge!r}; known: 'flat' (LLaVA-1.5) and 'spatial_unpad' (LLaVA-NeXT and "
            "LLaVA-OneVision)."
        )
    if is_onevision(original):
        check_onevision(original)
    feature = original.get("mm_vision_select_feature", "patch")
    if feature not in SELECT_STRATEGIES:
        raise UnsupportedModelError(f"mm_vision_select_feature is {feature!r}; known: {', '.join(SELECT_STRATEGIES)}.")


def check_onevision(original: dict[str, Any]) -> None:
    """Refuse what ``LlavaOnevisionForConditionalGeneration`` does otherwise.

    Raises:
        UnsupportedModelError: names the setting and what it may be.
    """
    for key, known in (
        ("mm_patch_merge_type", ("spatial_unpad",)),
        ("mm_newline_position", ("one_token", None)),
        ("mm_spatial_pool_mode", ("bilinear", None)),
    ):
        if original.get(key) not in known:
            raise UnsupportedModelError(
                f"{key} is {original.get(key)!r}; LlavaOnevisionForConditionalGeneration knows only {known[0]!r}."
            )
    aspect = str(original.get("image_aspect_ratio"))
    if not (aspect.startswith(LIMITED) and aspect.removeprefix(LIMITED).isdigit()):
        raise UnsupportedModelError(
            f"image_aspect_ratio is {aspect!r}; LlavaOnevisionForConditionalGeneration takes {LIMITED}N, N tiles."
        )
