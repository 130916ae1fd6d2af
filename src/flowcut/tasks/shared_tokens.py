"""Layers that see the same tokens in several prompts compute what belongs to one token only once.

Where a method cuts inside the language model, the prompts of a batch differ in what they keep, but up to the first
cut a picture's columns have the same states in all of them. The parts of those layers that work on every token by
itself, which is nearly all their arithmetic, then run on distinct tokens, and their output is copied to the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..stages.observing.overrides import Override


@contextmanager
def computed_once(layers: Sequence[nn.Module], pictures: Sequence[int], shared: int, mask: Tensor) -> Iterator[None]:
    """Let ``layers`` compute equal tokens once while the block runs.

    Args:
        layers: decoder layers.
        pictures: the picture of every sample; samples of one picture begin with the same ``shared`` tokens, which have
            the same states in all ``layers``.
        shared: see there.
        mask: ``[B, L]``, 1 for real tokens, padded on the left.
    """
    if not layers or len(set(pictures)) == len(pictures):
        yield
        return
    distinct, place = distinct_tokens(pictures, shared, mask)
    apply = partial(on_distinct, distinct, place, mask.shape)
    overrides = [Override(module, "forward", apply) for layer in layers for module in tokenwise(layer)]
    try:
        yield
    finally:
        for override in reversed(overrides):
            override.close()


def tokenwise(layer: nn.Module) -> list[nn.Module]:
    """The parts of a decoder layer that work on every token by itself: norms, MLP, projections of its attention."""
    outside = [module for name, module in layer.named_children() if name == "mlp" or name.endswith("norm")]
    attention = layer.get_submodule("self_attn")
    return [*outside, *[module for module in attention.children() if isinstance(module, nn.Linear)]]


def distinct_tokens(pictures: Sequence[int], shared: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens of a batch ``[B, L]`` are computed, and which of those stands for every token.

    Returns:
        Positions in the flattened batch ``[D]``; for every token of the flattened batch its number among them
        ``[B * L]`` (that of padding is of no account).
    """
    rows, columns = mask.shape
    first = torch.tensor([list(pictures).index(picture) for picture in pictures], device=mask.device)
    start = columns - mask.sum(dim=1)
    column = torch.arange(columns, device=mask.device)[None]
    number = column - start[:, None]
    own = first[:, None] * columns + start[first][:, None] + number
    itself = torch.arange(rows * columns, device=mask.device).view(rows, columns)
    stands_for = torch.where((number >= 0) & (number < shared), own, itself)
    stands_for = stands_for.masked_fill(mask == 0, int(start[0]))
    distinct, place = torch.unique(stands_for, return_inverse=True)
    return distinct, place.flatten()


def on_distinct(
    distinct: Tensor, place: Tensor, shape: torch.Size, original: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """The forward of a part that works on every token by itself; batches of another ``shape`` are not touched."""
    if not args or args[0].shape[:2] != shape:
        return original(*args, **kwargs)
    output = original(args[0].flatten(0, 1)[distinct][None], *args[1:], **kwargs)
    return output[0][place].unflatten(0, shape)
