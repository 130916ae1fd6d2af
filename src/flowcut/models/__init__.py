"""The model families. A new family is one new file and a line here."""

from __future__ import annotations

from torch import nn

from ..errors import UnsupportedModelError
from .base import FeatureChoice, ModelFamily, ModelParts, VisionTower
from .idefics3 import Idefics3, SmolVLM
from .internvl import InternVL
from .llava import Llava
from .llava_next import LlavaNext
from .llava_onevision import LlavaOnevision
from .qwen2_5_vl import Qwen25VL
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL
from .video_llava import VideoLlava

FAMILIES: tuple[ModelFamily, ...] = (
    Llava(),
    LlavaNext(),
    VideoLlava(),
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    LlavaOnevision(),
    Idefics3(),
    SmolVLM(),
    InternVL(),
)

__all__ = ["FAMILIES", "FeatureChoice", "ModelFamily", "ModelParts", "VisionTower", "find_parts"]


def find_parts(model: nn.Module) -> tuple[ModelFamily, ModelParts]:
    """Find the supported model inside ``model``, which may be it, or wrap it (PEFT, DDP).

    Raises:
        UnsupportedModelError: none is found; the message lists what is supported.
    """
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    for module in model.modules():
        for family in FAMILIES:
            if family.is_base(module):
                parent = parents.get(module)
                top = parent if parent is not None and hasattr(parent, "loss_function") else module
                return family, family.parts(module, top)
    supported = ", ".join(f"{family.class_name} ({family.name})" for family in FAMILIES)
    raise UnsupportedModelError(
        f"{type(model).__name__} is not a supported vision-language model. Supported: {supported}. "
        "docs/adding-a-family.md says how to add one."
    )
