"""Qwen2-VL: images and videos of any size in one packed sequence, merged 2 x 2, with (time, height, width) positions.

The budget counts merged tokens, per image or video. Cut are whole merge groups (``FlowCut.merge_unit``); a kept
token keeps the (time, height, width) position that the uncut model gives it, whatever ``FlowCut.positions`` says,
and decoding goes on behind the last uncut position.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import Qwen2VLModel

from ..errors import UnsupportedModelError
from .base import FeatureChoice, ModelFamily, ModelParts
from .packed_towers import PACKED, find_packed_tower


class Qwen2VL(ModelFamily):
    """A tower without CLS token whose last layer is read; FlowCut's paper cuts a second time inside the decoder."""

    name: ClassVar[str] = "qwen2_vl"
    class_name: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct")
    videos: ClassVar[bool] = True
    towers: ClassVar[tuple[str, ...]] = ("qwen2_vl_vision",)
    base_class: ClassVar[type[nn.Module]] = Qwen2VLModel

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, self.base_class)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        model: Any = base
        found = find_packed_tower(model.visual)
        if found is None:
            raise UnsupportedModelError(
                f"The vision tower {type(model.visual).__name__} is not known; known are: {', '.join(PACKED)}."
            )
        tower, projector = found
        return ModelParts(
            family=self.name,
            top=top,
            base=base,
            tower=tower,
            projector=projector,
            language_model=model.language_model,
            decoder_layers=tuple(model.language_model.layers),
            placeholders={"image": model.config.image_token_id, "video": model.config.video_token_id},
            second_cut=True,
            grid_positions=True,
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        return FeatureChoice((len(parts.tower.layers),), 0)
