"""A vision tower that stays whole: what it hands out gets traces, so that tokens can be cut behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ...methods.base import Method
from ...models.base import ImageLayout, ModelParts
from ...trace import ImageTrace, TileTrace
from ..observing.overrides import Override
from ..observing.stage import Stage
from ..projector.features import TRACES


class WholeStage(Stage):
    """Leaves traces on what a model's ``get_image_features`` and its like hand out, until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method) -> None:
        super().__init__()
        self.overrides = [
            Override(parts.base, f"get_{modality}_features", partial(hand_out, method, modality))
            for modality in parts.placeholders
        ]


def hand_out(method: Method, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` and its like; every entry of its ``pooler_output`` is one image.

    Raises:
        UnsupportedModelError: the output has no such entries.
    """
    as_tuple = kwargs.get("return_dict") is False
    output = original(*args, **{**kwargs, "return_dict": True})
    features = output.pooler_output
    if not are_of_images(features):
        raise UnsupportedModelError(
            f"get_{modality}_features gave {described(features)} as pooler_output. It takes one entry [visual tokens, "
            f"width] for each {modality} to tell which tokens belong to which."
        )
    if not isinstance(features, Tensor):
        # Samples without images have empty entries in some models.
        output.pooler_output = features = [tokens for tokens in features if len(tokens)]
    setattr(output, TRACES, [whole_trace(method, len(tokens), tokens.device) for tokens in features])
    return output.to_tuple() if as_tuple else output


def are_of_images(features: Any) -> bool:
    """Whether features have an entry ``[visual tokens, width]`` for every image."""
    if isinstance(features, Tensor):
        return features.dim() == 3
    return isinstance(features, Sequence) and all(isinstance(one, Tensor) and one.dim() == 2 for one in features)


def described(features: Any) -> str:
    """What features look like, for a message."""
    if isinstance(features, Tensor):
        return f"a tensor of shape {list(features.shape)}"
    return type(features).__name__


def whole_trace(method: Method, tokens: int, device: torch.device) -> ImageTrace:
    """The trace of an image of so many visual tokens behind a tower that stays whole."""
    tile = TileTrace(
        kept=torch.arange(tokens, device=device),
        patches=tokens,
        tokens_after_layer=[],
        layers_run=0,
        kept_after_layer={},
    )
    layout = ImageLayout(1, (1, tokens), torch.arange(tokens), complete=True)
    kept = torch.ones(tokens, dtype=torch.bool, device=device)
    return ImageTrace((tile,), layout, kept, tokens, method.tokens_to_keep(tokens))
