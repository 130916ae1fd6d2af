"""LLaVA-NeXT (LLaVA-1.6): any-resolution tiles, unpadded and joined row by row; a second cut in the decoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaNextModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from .base import SEPARATOR, FeatureChoice, ImageLayout, ModelParts
from .llava import Llava


class LlavaNext(Llava):
    """The parts of LLaVA-1.5, with several tiles for each picture."""

    name: ClassVar[str] = "llava_next"
    class_name: ClassVar[str] = "LlavaNextForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = (
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llama3-llava-next-8b-hf",
    )

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, LlavaNextModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        parts = super().parts(base, top)
        return ModelParts(**{**vars(parts), "second_cut": True, "packer": "pack_image_features"})

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        model: Any = parts.base
        sizes: Tensor = options["image_sizes"]
        tiles = [
            image_size_to_num_patches(size, model.config.image_grid_pinpoints, model.config.vision_config.image_size)
            for size in sizes
        ]
        patches = grid[0] * grid[1]
        # The model's own packing, applied to patch numbers instead of features, tells what every token is.
        numbers = [torch.arange(count * patches, dtype=torch.float64).reshape(count, patches, 1) for count in tiles]
        packed, _ = type(model).pack_image_features(
            model,
            numbers,
            sizes,
            vision_feature_select_strategy="default",
            image_newline=torch.full((1,), float(SEPARATOR), dtype=torch.float64),
        )
        return [
            ImageLayout(count, (count, *grid), tokens.squeeze(-1).long(), complete=False)
            for count, tokens in zip(tiles, packed, strict=True)
        ]
