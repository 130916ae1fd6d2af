"""How many visual tokens a picture will have, said before it is encoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from .attaching import fitting_parts
from .methods import Method
from .models.base import MODALITY
from .models.towers import side
from .stages.projector.encoder import check_encoder
from .stages.projector.planned import planned_tokens

__all__ = ["tokens_for"]


def tokens_for(
    model_or_config: nn.Module | PreTrainedConfig, method: Method, image_size: tuple[int, int], processor: Any = None
) -> int:
    """How many visual tokens of a picture enter the language model under :func:`~flowcut.attach_encoder`.

    Nothing is encoded: the answer follows from the config, the size of the picture, and the tiles or patches that the
    processor makes of one that large.

    Args:
        model_or_config: a supported model, or its config (the model is then built without weights, which takes a
            moment; give the model where it is at hand).
        method: what will be attached.
        image_size: of the picture, (height, width) in pixels.
        processor: the model's; needed where the number of tokens depends on how it scales or tiles a picture.

    Raises:
        UnsupportedModelError: the method or the model cannot be used with :func:`~flowcut.attach_encoder`.
        ValueError: the number depends on the picture's content or on a processor that was not given; the message says
            which; or the budget does not fit.
    """
    model = skeleton_of(model_or_config) if isinstance(model_or_config, PreTrainedConfig) else model_or_config
    family, parts = fitting_parts(model, method)
    check_encoder(method, parts.second_cut)
    config: Any = parts.tower.config
    asked = asked_of(processor, image_size)
    if parts.tower.packing is not None:
        if asked is None:
            raise ValueError(
                f"{type(parts.base).__name__} takes pictures of any size, and its processor decides how large they "
                "become: give it, tokens_for(..., processor=processor)."
            )
        available = asked[0]
        entering = method.packed_target(method.tokens_to_keep(available), available, parts.second_cut)
        return method.tokens_to_keep(available) if method.cuts_projected else entering
    rows = 1
    if parts.group > 1:
        if asked is None:
            raise ValueError(
                f"{type(parts.base).__name__} cuts pictures into tiles, and its processor decides into how many: give "
                "it, tokens_for(..., processor=processor)."
            )
        rows = asked[1]
    patches = side(config.image_size) // parts.tower.patch_size
    options = {"image_sizes": torch.tensor([image_size]), MODALITY: "image"}
    return sum(planned_tokens(family, parts, method, rows, (patches, patches), options))


def skeleton_of(config: PreTrainedConfig) -> nn.Module:
    """The model of a config without weights, on the meta device."""
    factory: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model: nn.Module = factory.from_config(config)
    return model


def asked_of(processor: Any, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Visual tokens and tiles that a processor makes of a picture, or ``None`` without one.

    Raises:
        ValueError: it cannot say.
    """
    if processor is None:
        return None
    ask = getattr(processor, "_get_num_multimodal_tokens", None)
    if ask is None:
        raise ValueError(f"{type(processor).__name__} cannot say how many tokens a picture has before it is read.")
    numbers = ask(image_sizes=[image_size])
    return int(numbers["num_image_tokens"][0]), int(numbers["num_image_patches"][0])
