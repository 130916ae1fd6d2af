"""What both kinds of towers need: seeds of pictures, and whether attention takes a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from ...models.base import ModelParts
from ..observing.attention import REGISTERED


def seeds_of(pixels: Tensor) -> tuple[int, ...]:
    """A number for every image ``[B, ...]`` that depends on its pixels alone, whatever batch it comes in."""
    bits = pixels.detach().flatten(1).float().contiguous().view(torch.int32).long()
    weights = torch.arange(1, bits.shape[1] + 1, device=bits.device) % 8191
    return tuple((bits * weights).sum(dim=1).tolist())


def name_of(parts: ModelParts) -> str:
    """The model's name, or the folder it was loaded from; empty where it has none."""
    config: Any = parts.top.config
    return str(config.name_or_path)


def check_bias(implementation: str | None) -> None:
    """Refuse a bias on attention logits where the implementation cannot take one.

    Raises:
        UnsupportedModelError: it is not ``eager`` or ``sdpa``.
    """
    name = (implementation or "eager").removeprefix(REGISTERED)
    if name not in ("eager", "sdpa"):
        raise UnsupportedModelError(
            f"The method adds a bias to attention logits, and the vision tower computes its attention with {name!r}, "
            'which takes none. Load the model with attn_implementation="sdpa" or "eager".'
        )
