"""Qwen2-VL: images and videos of any size in one packed sequence, merged 2 x 2, with (time, height, width) positions.

The budget counts merged tokens, per image or video. Cut are whole merge groups (``FlowCut.merge_unit``); a kept
token keeps the (time, height, width) position that the uncut model gives it, whatever ``FlowCut.positions`` says,
and decoding goes on behind the last uncut position.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Qwen2VLModel

from .base import FeatureChoice, ModelFamily, ModelParts, Packing, VisionTower


class Qwen2VL(ModelFamily):
    """A tower without CLS token whose last layer is read; FlowCut's paper cuts a second time inside the decoder."""

    name: ClassVar[str] = "qwen2_vl"
    class_name: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct")
    videos: ClassVar[bool] = True
    towers: ClassVar[tuple[str, ...]] = ("qwen2_vl_vision",)

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, Qwen2VLModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        model: Any = base
        visual = model.visual
        blocks = tuple(visual.blocks)
        return ModelParts(
            family=self.name,
            top=top,
            base=base,
            tower=VisionTower(
                module=visual,
                layers=blocks,
                attentions=tuple(block.attn for block in blocks),
                projections=tuple(block.attn.proj for block in blocks),
                mlps=tuple(block.mlp for block in blocks),
                prefix=0,
                patch_size=visual.config.patch_size,
                packing=self.packing(visual),
            ),
            projector=visual.merger,
            language_model=model.language_model,
            decoder_layers=tuple(model.language_model.layers),
            placeholders={"image": model.config.image_token_id, "video": model.config.video_token_id},
            second_cut=True,
            grid_positions=True,
        )

    def packing(self, visual: Any) -> Packing:
        """How the tower ``visual`` packs its images."""
        return Packing(
            merger=visual.merger,
            group=visual.config.spatial_merge_size**2,
            encoders={"image": "get_image_features", "video": "get_video_features"},
            order=in_order,
            width=visual.patch_embed.embed_dim,
            values=visual.patch_embed.proj.weight[0].numel(),
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        return FeatureChoice((len(parts.tower.layers),), 0)


def in_order(grids: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The order of a tower that does not permute its groups."""
    return None
