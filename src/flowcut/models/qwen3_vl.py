"""Qwen3-VL: as Qwen2-VL, with interpolated position embeddings and features of several tower layers (DeepStack).

Some layers in the middle of the tower hand their states, through mergers of their own, to the first layers of the
decoder, which add them at the visual tokens' places. Of all of them exactly the tokens stay that leave the tower. In
a prompt the frames of a video stand apart, with timestamps between them; its budget is for all of them together.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import Qwen3VLModel, Qwen3VLMoeModel

from .base import ModelParts
from .decoders import INJECTION
from .qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """The parts of Qwen2-VL, and where intermediate features enter the decoder."""

    name: ClassVar[str] = "qwen3_vl"
    class_name: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
    towers: ClassVar[tuple[str, ...]] = ("qwen3_vl_vision",)
    base_class: ClassVar[type[nn.Module]] = Qwen3VLModel

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        return ModelParts(**{**vars(super().parts(base, top)), "injection": INJECTION})


class Qwen3VLMoe(Qwen3VL):
    """The same with a mixture of experts in the decoder."""

    name: ClassVar[str] = "qwen3_vl_moe"
    class_name: ClassVar[str] = "Qwen3VLMoeForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen3-VL-30B-A3B-Instruct",)
    towers: ClassVar[tuple[str, ...]] = ("qwen3_vl_moe_vision",)
    base_class: ClassVar[type[nn.Module]] = Qwen3VLMoeModel
