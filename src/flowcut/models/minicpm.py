"""MiniCPM-V 4.6 and 4.7: squares of patches are joined in the middle of the tower, which is cut behind that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .costs import linear_flops


def layers_behind(visual: Any) -> tuple[nn.Module, ...]:
    """The tower's layers that work on joined patches; all of them where none are joined."""
    return tuple(visual.encoder.layers[visual.config.insert_layer_id + 1 :])


def joined_side(visual: Any) -> int:
    """The side of the squares of patches that are joined within the tower."""
    return int(visual.config.window_kernel_size[0]) if visual.config.insert_layer_id >= 0 else 1


def read_joined(visual: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with a strip of patches and ``target_sizes`` ``[images, 2]``.

    Raises:
        UnsupportedModelError: nothing is joined in this call, as with ``downsample_mode="4x"``.
    """
    if not kwargs.get("use_vit_merger", True):
        raise UnsupportedModelError(
            f"{type(visual).__name__} is cut behind the place where it joins patches, and downsample_mode='4x' joins "
            "none. Leave it at '16x', or use a method that cuts behind the projector."
        )
    pixels: Tensor = args[0] if args else kwargs["pixel_values"]
    sizes: Tensor = kwargs["target_sizes"]
    columns = (sizes.prod(dim=1) * visual.config.patch_size).tolist()
    grids = torch.nn.functional.pad(sizes // joined_side(visual), (1, 0), value=1)
    return grids, torch.split(pixels, columns, dim=-1)


def flops_in_front(visual: Any, tokens: int) -> int:
    """What an image of so many joined patches costs in front of :func:`layers_behind`."""
    window = joined_side(visual) ** 2
    patches, width = tokens * window, int(visual.config.hidden_size)
    total = patches * linear_flops(visual.embeddings.patch_embedding)
    for layer in visual.encoder.layers[: visual.config.insert_layer_id + 1]:
        total += patches * linear_flops(layer) + 4 * patches * patches * width
    if window > 1:
        merger = visual.vit_merger
        total += patches * linear_flops(merger.self_attn) + 4 * patches * window * width
        total += tokens * (linear_flops(merger.linear_1) + linear_flops(merger.linear_2))
    return total
