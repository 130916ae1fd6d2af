"""The model families. A new family is one new file and a line here."""

from __future__ import annotations

import transformers
from packaging.version import Version
from torch import nn

from ..errors import UnsupportedModelError
from .base import FeatureChoice, ModelFamily, ModelParts, VisionTower
from .general import General
from .idefics3 import Idefics3, SmolVLM
from .internvl import InternVL
from .llava import Llava
from .llava_next import LlavaNext
from .llava_next_video import LlavaNextVideo
from .llava_onevision import LlavaOnevision
from .qwen2_5_vl import Qwen25VL
from .qwen2_vl import Qwen2VL
from .qwen3_vl import Qwen3VL, Qwen3VLMoe
from .refused import NEWER, REFUSED
from .video_llava import VideoLlava

FAMILIES: tuple[ModelFamily, ...] = (
    Llava(),
    LlavaNext(),
    LlavaNextVideo(),
    VideoLlava(),
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Qwen3VLMoe(),
    LlavaOnevision(),
    Idefics3(),
    SmolVLM(),
    InternVL(),
)

GENERAL = General()
"""What takes care of every class that keeps transformers' contract and has no family of its own."""

__all__ = [
    "FAMILIES",
    "GENERAL",
    "NEWER",
    "REFUSED",
    "FeatureChoice",
    "ModelFamily",
    "ModelParts",
    "VisionTower",
    "find_parts",
    "supported_classes",
]


def find_parts(model: nn.Module) -> tuple[ModelFamily, ModelParts]:
    """Find the supported model inside ``model``, which may be it, or wrap it (PEFT, DDP).

    Raises:
        UnsupportedModelError: none is found, or more than one; the message lists what is supported.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"Expected a loaded model (a torch.nn.Module), got {shortened(model)} of type {type(model).__name__}. "
            "Load one first, such as LlavaForConditionalGeneration.from_pretrained(...). "
            f"Supported: {supported_classes()}."
        )
    if type(model).__name__ in REFUSED:
        reason = REFUSED[type(model).__name__]
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported: {reason}. Supported: {supported_classes()}."
        )
    needed = NEWER.get(type(model).__name__)
    if needed is not None and Version(transformers.__version__) < Version(needed):
        raise UnsupportedModelError(
            f"{type(model).__name__} is supported with transformers {needed} and newer; {transformers.__version__} is "
            "installed, whose class answers differently when it is cut."
        )
    found = [
        (family, path, module)
        for path, module in model.named_modules()
        if (family := next((family for family in (*FAMILIES, GENERAL) if family.is_base(module)), None)) is not None
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a supported vision-language model. Supported: {supported_classes()}. "
            "docs/adding-a-family.md says how to add one."
        )
    if len(found) > 1:
        places = ", ".join(f"{type(module).__name__} at {path or 'the top'}" for _, path, module in found)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds {len(found)} supported models, of which one is allowed: {places}. Give "
            "one of them; each can have a method of its own."
        )
    family, _, base = found[0]
    parent = next((parent for parent in model.modules() if any(child is base for child in parent.children())), None)
    top = parent if parent is not None and hasattr(parent, "loss_function") else base
    return family, family.parts(base, top)


def supported_classes() -> str:
    """The supported classes with the names of their families, for error messages."""
    named = ", ".join(f"{family.class_name} ({family.name})" for family in FAMILIES)
    return f"{named}, and {GENERAL.class_name} (flowcut models lists them)"


def shortened(value: object, width: int = 60) -> str:
    """What a value looks like, in at most ``width`` characters."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
