"""Video-LLaVA: an image tower and a video tower of the same make, one projector; every frame brings its CLS along."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import VideoLlavaModel

from .base import MODALITY, PREFIX, FeatureChoice, ImageLayout, ModelParts
from .llava import Llava
from .towers import find_tower


class VideoLlava(Llava):
    """Images as in LLaVA-1.5. A video of 8 frames is 8 x 257 tokens: 256 patches of each frame and its CLS token.

    A budget for a video counts its CLS tokens, which all stay.
    """

    name: ClassVar[str] = "video_llava"
    class_name: ClassVar[str] = "VideoLlavaForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("LanguageBind/Video-LLaVA-7B-hf",)
    videos: ClassVar[bool] = True

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, VideoLlavaModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        model: Any = base
        return ModelParts(
            family=self.name,
            top=top,
            base=base,
            tower=find_tower(model.image_tower),
            projector=model.multi_modal_projector,
            language_model=model.language_model,
            decoder_layers=tuple(model.language_model.layers),
            placeholders={"image": model.config.image_token_id, "video": model.config.video_token_id},
            own_towers={"video": find_tower(model.video_tower)},
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        if options.get(MODALITY) == "video":
            # The model applies vision_feature_select_strategy to images only.
            options = {**options, "vision_feature_select_strategy": "full"}
        return super().feature_choice(parts, options)

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        if options.get(MODALITY) != "video":
            return super().layouts(parts, choice, images, grid, options)
        frames = options["pixel_values_videos"].shape[1]
        patches = torch.arange(frames * grid[0] * grid[1]).reshape(frames, -1)
        tokens = torch.cat([torch.full((frames, choice.visible_prefix), PREFIX), patches], dim=1).flatten()
        layout = ImageLayout(frames, (frames, *grid), tokens, complete=True, handed_out="row")
        return [layout] * (images // frames)
