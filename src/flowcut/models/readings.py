"""What models without a file of their own read of a tower with a batch dimension, by the class of their base.

Known must be: which of the tower's layers they read, how many of its leading tokens they drop, and how large the
squares of patches are that become one visual token. Where squares are joined, what is left of a picture is put back at
its uncut place among zeros behind the tower, so that the model's own projector joins what belongs together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UnsupportedModelError
from .base import ImageLayout, VisionTower
from .towers import side


def one(config: Any) -> int:
    """Every patch is a visual token."""
    return 1


def by_factor(config: Any) -> int:
    """Squares of the size of the config's ``downsample_factor``."""
    return int(config.downsample_factor)


def by_token_count(config: Any) -> int:
    """Squares of the size that leaves ``mm_tokens_per_image``."""
    vision = config.vision_config
    return side(vision.image_size) // side(vision.patch_size) // math.isqrt(config.mm_tokens_per_image)


def by_ratio(config: Any) -> int:
    """Squares of the size that the config's ``downsample_ratio`` shrinks to one."""
    ratio: float = config.downsample_ratio
    return round(1 / ratio)


def by_stride(config: Any) -> int:
    """Squares of the size of the tower's ``hidden_stride``."""
    return int(config.vision_config.hidden_stride)


@dataclass(frozen=True)
class Reading:
    """What a model reads of its tower.

    Attributes:
        layers: the setting, of the config and of the call, that names one layer or several; empty for the last.
        strategy: the setting that says ``"default"`` where the first token is dropped; empty where there is none.
        dropped: leading tokens that are dropped whatever the settings say.
        inside: where in the encoder the tower is, if it is not the encoder itself.
        square: given the model's config, the side of the squares of patches that become one token.
    """

    layers: str = ""
    strategy: str = ""
    dropped: int = 0
    square: Callable[[Any], int] = one
    inside: str = ""


READINGS: dict[str, Reading] = {
    "AyaVisionModel": Reading("vision_feature_layer", "vision_feature_select_strategy", square=by_factor),
    "Cohere2VisionModel": Reading(square=by_factor),
    "DeepseekVLModel": Reading(),
    "Gemma3Model": Reading(square=by_token_count),
    "JanusModel": Reading(),
    "Ovis2Model": Reading(square=by_stride, inside="transformer"),
    "PaliGemmaModel": Reading(),
    "QianfanOCRModel": Reading("vision_feature_layer", "vision_feature_select_strategy", square=by_ratio),
    "VipLlavaModel": Reading("vision_feature_layers", dropped=1),
}


def layers_read(tower: VisionTower, layers: int | list[int]) -> tuple[int, ...]:
    """Positive indices of the hidden states that a setting names.

    Raises:
        UnsupportedModelError: they come before the second layer.
    """
    states = len(tower.layers) + 1
    positive = tuple(layer % states for layer in ([layers] if isinstance(layers, int) else layers))
    if max(positive) < 2:
        raise UnsupportedModelError(
            f"vision_feature_layer={layers} reads the tower before its second layer, where nothing can be cut yet; "
            "a cut needs a feature layer of at least 2."
        )
    return positive


def squared_layout(grid: tuple[int, int], square: int) -> ImageLayout:
    """The layout of a picture whose squares of patches become one token each, with what is left spread out again."""
    height, width = grid[0] // square, grid[1] // square
    numbers = torch.arange(grid[0] * grid[1]).reshape(height, square, width, square)
    order = numbers.transpose(1, 2).reshape(height * width, square * square)
    return ImageLayout(1, (height, width), torch.arange(len(order)), complete=True, order=order, spread=True)
