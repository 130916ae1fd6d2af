"""What ``get_image_features`` and its like hand out: the projected features of the kept tokens, image by image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.base import MODALITY
from ...trace import ImageTrace
from ..forward_pass import at_work, joined
from ..tower.tiles import join_rows, pack_tiles

TRACES = "flowcut_images"
"""Attribute of a tower's output that holds the traces of its images."""


def encode(owner: object, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` and the like, with their arguments at hand for the hooks that work inside."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    with joined(owner) as current:
        current.options = {**bound.arguments, **bound.kwargs, MODALITY: modality}
        try:
            output = original(*args, **kwargs)
            traces: list[ImageTrace] = []
            if not isinstance(output, tuple):
                # A tower inside the encoder has an output of its own.
                traces = getattr(output, TRACES, current.images)
                setattr(output, TRACES, traces)
        finally:
            current.options, current.images = {}, []
    if all(trace.whole for trace in traces):
        # As the uncut model hands them out.
        return output
    output.pooler_output = features_of_images(output.pooler_output, traces)
    if any((trace.layout.pooled is not None or trace.layout.spread) and not trace.whole for trace in traces):
        # Tokens that the model pooled or joined: all images of a call have as many of them left.
        kept = [
            tokens[trace.placeholder_kept.to(tokens.device)]
            for tokens, trace in zip(output.pooler_output, traces, strict=True)
        ]
        output.pooler_output = torch.stack(kept)
    return output


def features_of_images(features: Any, traces: list[ImageTrace]) -> Any:
    """What a model hands out for its frames, tiles or samples, with one entry for each of the images ``traces``."""
    handed_out = traces[0].layout.handed_out
    if handed_out == "row":
        return join_rows(traces, features)
    if handed_out == "sample" and not isinstance(features, Tensor):
        # Older versions of transformers do not join them yet: a tensor has an entry for every tile.
        return list(torch.split(torch.cat(features), [trace.visual_tokens for trace in traces]))
    return features


def images_at_work() -> list[ImageTrace]:
    """What became of the images of the ``get_image_features`` call at work."""
    current = at_work()
    return [] if current is None else current.images


def pack_kept(original: Callable[..., Any], image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's packing of tiles, for images of which only some patches are left, or tokens between patches."""
    traces = images_at_work()
    if all(trace.visual_tokens == trace.placeholders for trace in traces):
        return original(image_features, image_sizes, *args, **kwargs)
    bound = inspect.signature(original).bind(image_features, image_sizes, *args, **kwargs)
    newline = bound.arguments.get("image_newline")
    packed = []
    for number, (trace, features) in enumerate(zip(traces, image_features, strict=True)):
        if trace.layout.blend is None:
            packed.append(pack_tiles(trace, features, newline))
        else:
            whole, _ = original([features], image_sizes[number : number + 1], *args, **kwargs)
            packed.append(whole[0][trace.placeholder_kept.to(whole[0].device)])
    return packed, torch.tensor([len(features) for features in packed], device=packed[0].device)


def join_groups(original: Callable[..., Any], features: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The model's pixel shuffle: kept patches come group by group, with padding behind them."""
    tiles = [tile for trace in images_at_work() for tile in trace.tiles]
    if all(len(tile.kept) == tile.patches for tile in tiles):
        return original(features, *args, **kwargs)
    kept, unit = len(tiles[0].kept), tiles[0].unit
    return features.flatten(1, -2)[:, : kept * unit].reshape(len(features), kept, unit * features.shape[-1])


def hand_out_kept(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` and its like: the features of the kept tokens, image by image."""
    as_tuple = kwargs.get("return_dict") is False
    outputs = original(*args, **{**kwargs, "return_dict": True})
    traces: list[ImageTrace] = getattr(outputs, TRACES)
    outputs.pooler_output = only_kept(traces, outputs.pooler_output)
    intermediate = getattr(outputs, "deepstack_features", None)
    if intermediate is not None:
        outputs.deepstack_features = [only_kept(traces, features) for features in intermediate]
    return outputs.to_tuple() if as_tuple else outputs


def only_kept(traces: list[ImageTrace], features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features ``[tokens, width]`` of every image, without those of the cut tokens."""
    return tuple(
        tokens if len(tokens) == trace.visual_tokens else tokens[trace.placeholder_kept.to(tokens.device)]
        for trace, tokens in zip(traces, features, strict=True)
    )
