"""Idefics3 and SmolVLM: a SigLIP-like tower without CLS, a connector that joins squares of patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import nn
from transformers import Idefics3Model, SmolVLMModel

from .base import FeatureChoice, ImageLayout, ModelFamily, ModelParts
from .shuffle import shuffled_layout
from .towers import LAYOUTS, find_tower


class Idefics3(ModelFamily):
    """Whole groups are cut. The model sees every tile of a picture as an image, and a budget is for each of them."""

    name: ClassVar[str] = "idefics3"
    class_name: ClassVar[str] = "Idefics3ForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("HuggingFaceM4/Idefics3-8B-Llama3",)
    towers: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)
    base_class: ClassVar[type[nn.Module]] = Idefics3Model

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, self.base_class)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        model: Any = base
        return ModelParts(
            family=self.name,
            top=top,
            base=base,
            tower=find_tower(model.vision_model),
            projector=model.connector,
            language_model=model.text_model,
            decoder_layers=tuple(model.text_model.layers),
            placeholders={"image": model.config.image_token_id},
            group=model.config.scale_factor**2,
            shuffle=(model.connector, "pixel_shuffle"),
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        return FeatureChoice((len(parts.tower.layers),), 0)

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        connector: Any = parts.projector

        def shuffle(numbers: Any, scale: float) -> Any:
            return type(connector).pixel_shuffle(connector, numbers, scale)

        shape = (1, grid[0] * grid[1], 1)
        layout = shuffled_layout(shuffle, shape, grid, connector.scale_factor)
        # The model joins the features of each sample; placeholders come in one block for every tile.
        return [replace(layout, handed_out="sample")] * images


class SmolVLM(Idefics3):
    """The parts of Idefics3; videos are given frame by frame as images."""

    name: ClassVar[str] = "smolvlm"
    class_name: ClassVar[str] = "SmolVLMForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = (
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    )
    base_class: ClassVar[type[nn.Module]] = SmolVLMModel
