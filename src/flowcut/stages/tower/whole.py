"""A vision tower that stays whole: what it hands out gets traces, so that tokens can be cut behind it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...errors import FlowCutError, UnsupportedModelError
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
            Override(
                parts.base, f"get_{modality}_features", partial(hand_out, method, modality, parts.tokens_per_image)
            )
            for modality in parts.placeholders
        ]


def hand_out(
    method: Method, modality: str, per_image: int, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """``get_image_features`` and its like; every entry of its ``pooler_output`` is one image.

    Args:
        method: what cuts.
        modality: what is encoded.
        per_image: tokens of every image where an entry holds several; else 0.
        original: the model's own, and what it is called with.

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
        given = [part for one in features for part in (one.split(per_image) if per_image else [one])]
        output.pooler_output = features = [tokens for tokens in given if len(tokens)]
    again = Recount(original, args, kwargs)
    setattr(output, TRACES, [whole_trace(method, tokens, again) for tokens in features])
    again.tokens = sum(len(tokens) for tokens in features)
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


class Recount:
    """Counts the FLOPs of an encoder's call by making it once more under torch's counter, when somebody asks.

    Nothing large is kept: the call is repeated with ones of the shapes and types that its floating-point arguments had.

    Args:
        encoder: the model's own method.
        args, kwargs: of the call.
    """

    def __init__(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model = weakref.ref(encoder.__self__)
        self._encoder: str = encoder.__name__
        self._args = tuple(shape_of(value) for value in args)
        self._kwargs = {name: shape_of(value) for name, value in kwargs.items()}
        self.tokens = 0
        self._total: int | None = None

    def share(self, tokens: int) -> int:
        """The FLOPs of an image with so many of the call's visual tokens.

        Raises:
            FlowCutError: the model is gone.
        """
        if self._total is None:
            self._total = self._count()
        return round(self._total * tokens / self.tokens)

    @torch.enable_grad()
    def _count(self) -> int:
        # torch's counter hooks gradients of what modules are given, and fails on parameters where there are none.
        model = self._model()
        if model is None:
            raise FlowCutError("FLOPs of a vision tower that is not taken apart can be counted while its model exists.")
        args = tuple(ones_of(value) for value in self._args)
        kwargs = {name: ones_of(value) for name, value in self._kwargs.items()}
        with FlopCounterMode(display=False) as counter:
            getattr(type(model), self._encoder)(model, *args, **kwargs)
        return int(counter.get_total_flops())


@dataclass(frozen=True)
class Shape:
    """What is kept of a floating-point tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def shape_of(value: Any) -> Any:
    """A value, or the shape alone of a floating-point tensor."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return Shape(value.shape, value.dtype, value.device)
    return value


def ones_of(value: Any) -> Any:
    """What :func:`shape_of` was given, with ones in place of numbers."""
    if isinstance(value, Shape):
        return torch.ones(value.shape, dtype=value.dtype, device=value.device)
    return value


def whole_trace(method: Method, features: Tensor, again: Recount) -> ImageTrace:
    """The trace of an image with features ``[visual tokens, width]`` behind a tower that stays whole."""
    tokens = len(features)
    tile = TileTrace(
        kept=torch.arange(tokens, device=features.device),
        patches=tokens,
        tokens_after_layer=[],
        layers_run=0,
        kept_after_layer={},
    )
    layout = ImageLayout(1, (1, tokens), torch.arange(tokens), complete=True)
    kept = torch.ones(tokens, dtype=torch.bool, device=features.device)
    target = method.tokens_to_keep(tokens)
    return ImageTrace((tile,), layout, kept, tokens, target, counted=partial(again.share, tokens))
