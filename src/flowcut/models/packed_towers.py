"""The vision towers that pack pictures of any size into one sequence, by ``model_type``.

They are called with the patches of all pictures and ``grid_thw``; their layers take ``cu_seqlens`` and rotary
embeddings; groups of patches that follow one another become one visual token behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from .base import Packing, VisionTower


@dataclass(frozen=True)
class PackedLayout:
    """Names inside a tower.

    Attributes:
        windows: whether some layers work in windows, by which the tower sorts its groups.
        deepstack: the list of mergers of states from the middle of the tower; empty where there is none.
        joiner: a convolution in front of the merger that joins the patches of a group; empty where the merger does.
        layers: the list of layers.
        attention: a layer's attention module.
        projection: the output projection in it.
        merger: what makes visual tokens of groups.
    """

    windows: bool = False
    deepstack: str = ""
    joiner: str = ""
    layers: str = "blocks"
    attention: str = "attn"
    projection: str = "proj"
    merger: str = "merger"


PACKED: dict[str, PackedLayout] = {
    "cohere_compass_vision": PackedLayout(deepstack="deepstack_merger_list"),
    "exaone4_5_vision": PackedLayout(windows=True),
    "glm4v_moe_vision": PackedLayout(joiner="downsample"),
    "glm4v_vision": PackedLayout(joiner="downsample"),
    "glm_ocr_vision": PackedLayout(joiner="downsample"),
    "qwen2_5_omni_vision_encoder": PackedLayout(windows=True),
    "qwen2_5_vl_vision": PackedLayout(windows=True),
    "qwen2_vl_vision": PackedLayout(),
    "qwen3_5_moe_vision": PackedLayout(),
    "qwen3_5_vision": PackedLayout(),
    "qwen3_omni_moe_vision_encoder": PackedLayout(deepstack="merger_list"),
    "qwen3_vl_moe_vision": PackedLayout(deepstack="deepstack_merger_list"),
    "qwen3_vl_vision": PackedLayout(deepstack="deepstack_merger_list"),
}


def find_packed_tower(module: nn.Module) -> tuple[VisionTower, nn.Module] | None:
    """A packed tower taken apart, and what makes visual tokens of groups; ``None`` where its kind is not known."""
    visual: Any = module
    layout = PACKED.get(getattr(getattr(visual, "config", None), "model_type", ""))
    if layout is None:
        return None
    layers = tuple(visual.get_submodule(layout.layers).children())
    merger = visual.get_submodule(layout.merger)
    weight: Tensor = visual.patch_embed.proj.weight
    packing = Packing(
        merger=merger,
        group=visual.spatial_merge_size**2,
        encoders={"image": "get_image_features", "video": "get_video_features"},
        order=order_of(visual, layout),
        width=weight.shape[0],
        values=weight[0].numel(),
        deepstack=tuple(visual.get_submodule(layout.deepstack)) if layout.deepstack else (),
    )
    tower = VisionTower(
        module=visual,
        layers=layers,
        attentions=tuple(layer.get_submodule(layout.attention) for layer in layers),
        projections=tuple(layer.get_submodule(f"{layout.attention}.{layout.projection}") for layer in layers),
        mlps=tuple(layer.get_submodule("mlp") for layer in layers),
        prefix=0,
        patch_size=visual.config.patch_size,
        packing=packing,
    )
    return tower, nn.ModuleList([visual.get_submodule(layout.joiner), merger]) if layout.joiner else merger


def order_of(visual: nn.Module, layout: PackedLayout) -> Callable[[Tensor, dict[str, Any]], Tensor | None]:
    """How a tower sorts its groups, see :class:`~flowcut.models.base.Packing`."""
    return partial(by_window, visual) if layout.windows else in_order


def by_window(visual: Any, grids: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The group at every place of the sequence of a tower with windows, int64 ``[groups]``."""
    order: Tensor
    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
        kwargs=dict(options),
    )
    return order


def in_order(grids: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The order of a tower that does not permute its groups."""
    return None
