"""Softmax and choice within segments of a batch's rows, such as the images of a prompt. Pure functions.

Every column of ``[B, S]`` belongs to one of so many segments, which are numbered over the whole batch, or to none (-1).
How they lie need not be known on the host, which so never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def softmax_within(logits: Tensor, segment: Tensor, count: int) -> Tensor:
    """Softmax over the columns of each segment.

    Args:
        logits: ``[B, H, S]``, float32.
        segment: int64 ``[B, S]``, from -1 to ``count - 1``; those of none make up one for themselves in each row.
        count: segments.

    Returns:
        ``[B, H, S]``.
    """
    slots = segment + 1
    index = slots[:, None].expand_as(logits)
    most = logits.new_full((*logits.shape[:2], count + 1), float("-inf")).scatter_reduce(2, index, logits, "amax")
    powers = (logits - most.gather(2, index)).exp()
    # A matrix product adds up in the same order every time, which adding into slots does not on a GPU.
    members = (slots[..., None] == torch.arange(count + 1, device=slots.device)).to(powers.dtype)
    return powers / torch.matmul(powers, members).gather(2, index)


def best_within(scores: Tensor, segment: Tensor, most: Sequence[int]) -> Tensor:
    """The best columns of every segment, and all that belong to none.

    Args:
        scores: ``[B, S]``, finite where a column belongs to a segment; of equals the first is better.
        segment: int64 ``[B, S]``, from -1.
        most: how many columns of each segment are chosen at most.

    Returns:
        Boolean ``[B, S]``.
    """
    flat = segment.flatten()
    by_score = scores.flatten().argsort(descending=True, stable=True)
    # Segment by segment, the best first.
    own, within = flat[by_score].sort(stable=True)
    place = torch.arange(len(own), device=own.device) - torch.searchsorted(own, own)
    # The limit of no segment, -1, comes last.
    chosen = place < torch.tensor([*most, len(own)], device=own.device)[own]
    return torch.empty_like(chosen).scatter_(0, by_score[within], chosen).view_as(segment)


def columns_of(member: Tensor, count: int) -> Tensor:
    """The columns of one row that are ``member`` ``[S]``, ascending; there are ``count``, int64 ``[count]``."""
    return member.view(torch.uint8).sort(descending=True, stable=True).indices[:count]
