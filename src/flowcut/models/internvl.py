"""InternVL3: tiles of 448 x 448 pixels, a tower with CLS, pixel shuffle by one half in front of the projector."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import InternVLModel

from .base import FeatureChoice, ImageLayout, ModelParts
from .llava import Llava
from .shuffle import shuffled_layout


class InternVL(Llava):
    """Whole groups are cut. The model sees every tile (and every frame) as an image; a budget is for each of them."""

    name: ClassVar[str] = "internvl"
    class_name: ClassVar[str] = "InternVLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf")

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, InternVLModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        config: Any = base.config
        group = round(1 / config.downsample_ratio) ** 2
        return ModelParts(**{**vars(super().parts(base, top)), "group": group, "shuffle": (base, "pixel_shuffle")})

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        model: Any = parts.base

        def shuffle(numbers: Any, scale: float) -> Any:
            return type(model).pixel_shuffle(model, numbers, scale)

        return [shuffled_layout(shuffle, (1, *grid, 1), grid, model.config.downsample_ratio)] * images
