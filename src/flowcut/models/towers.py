"""The vision towers by ``model_type``: where their layers and attention modules are, and their prefix tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from .base import VisionTower


@dataclass(frozen=True)
class TowerLayout:
    """Names inside a tower: its list of layers, a layer's attention module and its output projection; prefix tokens.

    ``mlp`` is a layer's MLP. ``keywords`` and ``pooler``: see :class:`~flowcut.models.base.VisionTower`.
    """

    layers: str
    attention: str
    projection: str
    cls_tokens: int
    keywords: bool = True
    mlp: str = "mlp"
    pooler: str = ""


LAYOUTS: dict[str, TowerLayout] = {
    "clip_vision_model": TowerLayout("encoder.layers", "self_attn", "out_proj", 1),
    "dinov2": TowerLayout("encoder.layer", "attention", "o_proj", 1),
    "dinov2_with_registers": TowerLayout("encoder.layer", "attention", "o_proj", 1),
    "vit": TowerLayout("layers", "attention", "o_proj", 1, pooler="pooler"),
    "siglip_vision_model": TowerLayout("encoder.layers", "self_attn", "out_proj", 0, pooler="head"),
    "idefics3_vision": TowerLayout("encoder.layers", "self_attn", "out_proj", 0, keywords=False),
    "smolvlm_vision": TowerLayout("encoder.layers", "self_attn", "out_proj", 0, keywords=False),
    "janus_vision_model": TowerLayout("encoder.layers", "self_attn", "projection_layer", 0),
    "ovis2_vision": TowerLayout("encoder.layers", "attention", "out_proj", 0, mlp="ffn"),
    "qianfan_ocr_vision": TowerLayout("layers", "attention", "projection_layer", 1),
    "internvl_vision": TowerLayout("encoder.layer", "attention", "projection_layer", 1, keywords=False),
}


def find_tower(module: nn.Module) -> VisionTower:
    """Take a vision tower apart.

    Raises:
        UnsupportedModelError: its ``model_type`` has no layout here.
    """
    config: Any = module.config
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise UnsupportedModelError(
            f"The vision tower {type(module).__name__} (model_type {config.model_type!r}) is not known; "
            f"known towers: {', '.join(LAYOUTS)}. models/towers.py takes a new one in one line."
        )
    layers = tuple(module.get_submodule(layout.layers).children())
    return VisionTower(
        module=module,
        layers=layers,
        attentions=tuple(layer.get_submodule(layout.attention) for layer in layers),
        projections=tuple(layer.get_submodule(f"{layout.attention}.{layout.projection}") for layer in layers),
        mlps=tuple(layer.get_submodule(layout.mlp) for layer in layers),
        prefix=layout.cls_tokens + getattr(config, "num_register_tokens", 0),
        patch_size=side(config.patch_size),
        keywords=layout.keywords,
        pooler=getattr(module, layout.pooler, None) if layout.pooler else None,
    )


def side(size: Any) -> int:
    """One side of a square, which configs give as a number or as a pair."""
    return int(size if isinstance(size, int) else size[0])
