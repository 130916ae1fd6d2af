"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; the frames of a video are pooled behind the tower."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import LlavaNextVideoModel

from .base import MODALITY, FeatureChoice, ImageLayout, ModelParts
from .llava_next import LlavaNext


class LlavaNextVideo(LlavaNext):
    """A video's tokens are pooled squares of patches: the tower runs whole for it, and the tokens are cut behind."""

    name: ClassVar[str] = "llava_next_video"
    class_name: ClassVar[str] = "LlavaNextVideoForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("llava-hf/LLaVA-NeXT-Video-7B-hf",)
    videos: ClassVar[bool] = True

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, LlavaNextVideoModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        parts = super().parts(base, top)
        config: Any = base.config
        placeholders = {"image": config.image_token_id, "video": config.video_token_id}
        return ModelParts(**{**vars(parts), "placeholders": placeholders, "second_cut": False})

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        if options.get(MODALITY) != "video":
            return super().layouts(parts, choice, images, grid, options)
        model: Any = parts.base
        frames = options["pixel_values_videos"].shape[1]
        pooler = model.vision_resampler
        blocked = (
            f"{type(model).__name__} pools the frames of a video behind the tower, so that no visual token belongs to "
            "one patch, and this method can only cut patches. Use one that ranks pooled tokens, such as FlowCut, or "
            "give a budget for all tokens."
        )
        weights = None
        if isinstance(pooler.pool, nn.AvgPool2d):
            # The model's own pooling of patches that are each 1 in a channel of their own gives their weights.
            weights = type(pooler).forward(pooler, torch.eye(grid[0] * grid[1])[None])[0]
        stride = model.config.spatial_pool_stride
        height, width = grid[0] // stride, grid[1] // stride
        tokens = torch.arange(frames * height * width)
        layout = ImageLayout(frames, (frames, height, width), tokens, False, pooled=weights, blocked=blocked)
        return [layout] * (images // frames)
