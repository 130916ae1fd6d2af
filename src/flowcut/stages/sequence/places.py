"""Positions with several axes (M-RoPE): a visual token's are its time, height and width in the picture."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...trace import CacheState

AXES = 3


def places_of(
    base: nn.Module, call: dict[str, Any], before: CacheState, shape: torch.Size, device: torch.device
) -> Tensor:
    """The (time, height, width) of every column of a call, ``[3, B, L]``, as the uncut model counts them.

    Args:
        base: the model; its own code works them out, and it remembers what decoding goes on from (``rope_deltas``).
        call: arguments of its forward, uncut.
        before: the state of the cache.
        shape: (B, L) of the call.
        device: where the positions shall be, if they must be made.

    Raises:
        ValueError: by the model, where it lacks ``mm_token_type_ids``.
    """
    positions: Tensor | None = call.get("position_ids")
    model: Any = base
    columns = shape[1]
    if positions is None and not before.uncut_length:
        embeds = call.get("inputs_embeds")
        if embeds is None:
            embeds = model.get_input_embeddings()(call["input_ids"])
        accepted = inspect.signature(model.compute_3d_position_ids).parameters
        given = {**call, "inputs_embeds": embeds}
        positions = model.compute_3d_position_ids(**{name: given.get(name) for name in accepted})
    if positions is None:
        mask: Tensor | None = call.get("attention_mask")
        if mask is None:
            positions = (torch.arange(columns, device=device) + before.uncut_length).expand(shape)
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -columns:]
        if before.uncut_length and model.rope_deltas is not None:
            deltas = model.rope_deltas.to(positions.device)
            positions = positions + deltas.repeat_interleave(shape[0] // len(deltas), dim=0)
    if positions.dim() == 2:
        positions = positions[None]
    # generate() puts the positions in the text in front of the three axes.
    return positions[-AXES:].expand(AXES, *shape)
