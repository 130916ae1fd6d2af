"""LLaVA-1.5 and everything else that loads as ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import LlavaModel

from ..errors import UnsupportedModelError
from .base import MODALITY, FeatureChoice, ModelFamily, ModelParts
from .readings import layers_read
from .towers import LAYOUTS, find_tower


class Llava(ModelFamily):
    """One picture, one grid of patches, an MLP projector, a decoder; the geometry of LLaVA-1.5."""

    name: ClassVar[str] = "llava"
    class_name: ClassVar[str] = "LlavaForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf")
    towers: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, LlavaModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        model: Any = base
        return ModelParts(
            family=self.name,
            top=top,
            base=base,
            tower=find_tower(model.vision_tower),
            projector=model.multi_modal_projector,
            language_model=model.language_model,
            decoder_layers=tuple(model.language_model.layers),
            placeholders={"image": model.config.image_token_id},
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        config: Any = parts.base.config
        tower = parts.tower_of(options.get(MODALITY, "image"))
        layers = options.get("vision_feature_layer")
        layers = config.vision_feature_layer if layers is None else layers
        strategy = options.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
        positive = layers_read(tower, layers)
        dropped = 1 if strategy == "default" else 0
        if dropped > tower.prefix:
            raise UnsupportedModelError(
                "vision_feature_select_strategy='default' drops the first token, but "
                f"{type(tower.module).__name__} has no CLS token there: that would be a patch. "
                "Set the strategy to 'full'."
            )
        return FeatureChoice(positive, tower.prefix - dropped)
