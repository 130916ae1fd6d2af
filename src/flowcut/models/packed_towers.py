"""The vision towers that pack pictures of any size into one sequence, by ``model_type``.

Most are called with the patches of all pictures and ``grid_thw``; their layers take ``cu_seqlens`` and rotary
embeddings; groups of patches that follow one another become one visual token behind them. Others are called with
pictures, or leave the joining to the model behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from ..errors import UnsupportedModelError
from .base import Packing, VisionTower
from .minicpm import flops_in_front, layers_behind, read_joined
from .padded_rows import read_placed, read_shaped, rows_of_placed, rows_of_shaped
from .towers import side


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
        mlp: a layer's MLP.
        embedding: what embeds patches.
        merger: what makes visual tokens of groups; empty where the model does, out of the whole sequence.
        in_groups: whether the patches of a group follow one another, or stand in the rows of their picture.
        read, rows, flops_in_front: see :class:`~flowcut.models.base.Packing`.
        behind: gives the layers that are cut, where they are not all of ``layers``.
    """

    windows: bool = False
    deepstack: str = ""
    joiner: str = ""
    layers: str = "blocks"
    attention: str = "attn"
    projection: str = "proj"
    mlp: str = "mlp"
    embedding: str = "patch_embed.proj"
    merger: str = "merger"
    in_groups: bool = True
    read: Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Tensor, Sequence[Tensor]]] | None = None
    rows: Callable[[tuple[Any, ...], dict[str, Any]], Tensor] | None = None
    behind: Callable[[Any], tuple[nn.Module, ...]] | None = None
    flops_in_front: Callable[[Any, int], int] | None = None


def pictures_with_sizes(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with pictures, filled up to one size, and ``image_sizes``."""
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    sizes = kwargs.get("image_sizes")
    if sizes is None:
        sizes = [pixels.shape[-2:]] * len(pixels)
    patches = torch.as_tensor(sizes).cpu() // side(visual.config.patch_size)
    return torch.nn.functional.pad(patches, (1, 0), value=1), list(pixels)


def patches_in_a_batch(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with ``[1, patches, ...]`` and ``grid_thw``."""
    grids: Tensor = kwargs["grid_thw"]
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    return grids, torch.split(pixels[0], grids.prod(dim=1).tolist())


def merged_by_two(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is also told the ``merge_sizes`` of its pictures.

    Raises:
        UnsupportedModelError: one is not 2, as in frames of a video.
    """
    if bool((torch.as_tensor(kwargs["merge_sizes"]) != 2).any()):
        raise UnsupportedModelError("Pictures are cut in squares of 2 x 2 patches; merge sizes other than 2 are not.")
    grids: Tensor = kwargs["grid_thw"]
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    return grids, torch.split(pixels, grids.prod(dim=1).tolist())


like_siglip = partial(
    PackedLayout,
    layers="encoder.layers",
    attention="self_attn",
    projection="out_proj",
    embedding="embeddings.patch_embedding",
    merger="",
)
"""The names of SigLIP's tower, which others took over."""

_MINICPM = like_siglip(
    in_groups=False,
    read=read_joined,
    behind=layers_behind,
    flops_in_front=flops_in_front,
)

PACKED: dict[str, PackedLayout] = {
    "cohere_compass_vision": PackedLayout(deepstack="deepstack_merger_list"),
    "cosmos3_edge_vision": like_siglip(),
    "exaone4_5_vision": PackedLayout(windows=True),
    "gemma4_vision": PackedLayout(
        layers="encoder.layers",
        attention="self_attn",
        projection="o_proj",
        embedding="patch_embedder.input_proj",
        merger="",
        in_groups=False,
        read=read_placed,
        rows=rows_of_placed,
    ),
    "glm4v_moe_vision": PackedLayout(joiner="downsample"),
    "glm4v_vision": PackedLayout(joiner="downsample"),
    "glm_ocr_vision": PackedLayout(joiner="downsample"),
    "kimi_k25_vision": PackedLayout(layers="layers", merger="", in_groups=False),
    "minicpmv4_6_vision": _MINICPM,
    "minicpmv4_7_vision": _MINICPM,
    "minimax_m3_vl_vision": like_siglip(layers="layers", embedding="embeddings.proj"),
    "paddleocr_vl_vision": like_siglip(
        layers="vision_model.encoder.layers",
        embedding="vision_model.embeddings.patch_embedding",
        in_groups=False,
        read=patches_in_a_batch,
    ),
    "pixtral": PackedLayout(
        layers="transformer.layers",
        attention="attention",
        projection="o_proj",
        mlp="feed_forward",
        embedding="patch_conv",
        merger="",
        in_groups=False,
        read=pictures_with_sizes,
    ),
    "qwen2_5_omni_vision_encoder": PackedLayout(windows=True),
    "qwen2_5_vl_vision": PackedLayout(windows=True),
    "qwen2_vl_vision": PackedLayout(),
    "qwen3_5_moe_vision": PackedLayout(),
    "qwen3_5_vision": PackedLayout(),
    "qwen3_omni_moe_vision_encoder": PackedLayout(deepstack="merger_list"),
    "qwen3_vl_moe_vision": PackedLayout(deepstack="deepstack_merger_list"),
    "qwen3_vl_vision": PackedLayout(deepstack="deepstack_merger_list"),
    "siglip2_vision_model": like_siglip(in_groups=False, read=read_shaped, rows=rows_of_shaped),
    "video_llama_3_vision": like_siglip(read=merged_by_two),
}


def find_packed_tower(module: nn.Module, merge: int = 1) -> tuple[VisionTower, nn.Module] | None:
    """A packed tower taken apart, and what makes visual tokens of groups; ``None`` where its kind is not known.

    Args:
        module: the tower.
        merge: side of the squares that become one token, where the tower itself does not know.
    """
    visual: Any = module
    layout = PACKED.get(getattr(getattr(visual, "config", None), "model_type", ""))
    if layout is None:
        return None
    layers = layout.behind(visual) if layout.behind else tuple(visual.get_submodule(layout.layers).children())
    if not layers:
        return None
    merger: nn.Module = visual.get_submodule(layout.merger) if layout.merger else nn.Identity()
    merge = visual.spatial_merge_size if layout.merger else merge
    weight: Tensor = visual.get_submodule(layout.embedding).weight
    packing = Packing(
        merger=merger,
        group=merge**2,
        encoders={"image": "get_image_features", "video": "get_video_features"},
        order=order_of(visual, layout),
        width=weight.shape[0],
        values=weight[0].numel(),
        deepstack=tuple(visual.get_submodule(layout.deepstack)) if layout.deepstack else (),
        read=None if layout.read is None else partial(layout.read, visual),
        restores=not layout.merger,
        arrange=None if layout.in_groups else partial(by_group, merge),
        rows=layout.rows,
        flops_in_front=None if layout.flops_in_front is None else partial(layout.flops_in_front, visual),
    )
    tower = VisionTower(
        module=visual,
        layers=layers,
        attentions=tuple(layer.get_submodule(layout.attention) for layer in layers),
        projections=tuple(layer.get_submodule(f"{layout.attention}.{layout.projection}") for layer in layers),
        mlps=tuple(layer.get_submodule(layout.mlp) for layer in layers),
        prefix=0,
        patch_size=side(visual.config.patch_size),
        packing=packing,
    )
    return tower, nn.ModuleList([visual.get_submodule(layout.joiner), merger]) if layout.joiner else merger


def by_group(merge: int, grids: Tensor) -> Tensor | None:
    """The patch at every place of a sequence in which squares of ``merge`` x ``merge`` patches follow one another."""
    if merge == 1:
        return None
    places, first = [], 0
    for frames, height, width in grids.tolist():
        numbers = torch.arange(frames * height * width).reshape(frames, height // merge, merge, width // merge, merge)
        places.append(numbers.transpose(2, 3).flatten() + first)
        first += frames * height * width
    return torch.cat(places)


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
