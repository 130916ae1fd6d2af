"""Qwen2.5-VL: as Qwen2-VL, but its tower works in windows, and only some of its layers see the whole image.

A token that is kept stays in the window it had in the uncut image; the global token and the scores are those of the
whole image in every layer.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import Qwen2_5_VLModel

from .qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """The parts of Qwen2-VL, with merge groups sorted by window."""

    name: ClassVar[str] = "qwen2_5_vl"
    class_name: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")
    towers: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_vision",)
    base_class: ClassVar[type[nn.Module]] = Qwen2_5_VLModel
