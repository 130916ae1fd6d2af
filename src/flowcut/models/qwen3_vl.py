"""Qwen3-VL: as Qwen2-VL, with interpolated position embeddings and features of several tower layers (DeepStack).

Some layers in the middle of the tower hand their states, through mergers of their own, to the first layers of the
decoder, which add them at the visual tokens' places. Of all of them exactly the tokens stay that leave the tower. In
a prompt the frames of a video stand apart, with timestamps between them; its budget is for all of them together.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import Qwen3VLModel

from .base import ModelParts, Packing
from .qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """The parts of Qwen2-VL, and where intermediate features leave the tower and enter the decoder."""

    name: ClassVar[str] = "qwen3_vl"
    class_name: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")
    towers: ClassVar[tuple[str, ...]] = ("qwen3_vl_vision",)

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, Qwen3VLModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        return ModelParts(**{**vars(super().parts(base, top)), "injection": "_deepstack_process"})

    def packing(self, visual: Any) -> Packing:
        return Packing(**{**vars(super().packing(visual)), "deepstack": tuple(visual.deepstack_merger_list)})
