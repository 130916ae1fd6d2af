"""The second computation of ``oracle.py`` for sequences that several calls made, as conversations are.

Every call adds columns, with pictures among them or without. A sample's kept columns of all calls go through the uncut
decoder at once; a causal model gives every token what it had when the tokens came call by call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import oracle
import torch
from torch import Tensor

from flowcut import Method
from flowcut.models import find_parts
from flowcut.trace import Trace


@dataclass(frozen=True)
class Turn:
    """What one call added to a sequence.

    Attributes:
        inputs: its own columns, ``input_ids`` and ``attention_mask`` ``[B, L]``, and its pictures.
        method: what was attached.
        counted: whether positions leave out padding, as ``generate()`` counts; else they are columns.
        encoded: its pictures, from :func:`oracle.encode`.
        trace: of the call, where it had pictures.
    """

    inputs: dict[str, Tensor]
    method: Method
    counted: bool
    encoded: dict[str, Any] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)

    @property
    def mask(self) -> Tensor:
        """Boolean ``[B, L]``."""
        return self.inputs["attention_mask"].bool()


@torch.no_grad()
def compute(plain: Any, turns: Sequence[Turn]) -> list[oracle.Row]:
    """Every sample by itself, in the uncut model ``plain``; columns count through all turns."""
    parts = find_parts(plain)[1]
    bounds = max((stretch_layers(turn) for turn in turns), key=len)
    embeds, added, columns, first = [], [], [], 0
    for turn in turns:
        states, levels = oracle.embedded(parts, turn.inputs["input_ids"], turn.encoded, turn.trace)
        embeds.append(states)
        added.append(levels)
        stretches = oracle.stretches_of(turn.trace, turn.mask)
        stretches = stretches if len(stretches) > 1 else stretches * (1 + len(bounds))
        columns.append([[kept + first for kept in stretch] for stretch in stretches])
        first += states.shape[1]
    runs = [[torch.cat(own) for own in zip(*stretch, strict=True)] for stretch in zip(*columns, strict=True)]
    places = [positions(plain, turns, run) for run in runs]
    depth = max(map(len, added))
    levels = [
        torch.cat(
            [own[number] if own else torch.zeros_like(states) for own, states in zip(added, embeds, strict=True)], 1
        )
        for number in range(depth)
    ]
    together = torch.cat(embeds, dim=1)
    return [
        oracle.decode(
            parts,
            together[row],
            [level[row] for level in levels],
            [own[..., row, :] for own in places],
            [run[row] for run in runs],
            bounds,
        )
        for row in range(len(together))
    ]


def stretch_layers(turn: Turn) -> tuple[int, ...]:
    """The first layer of every run of layers but the first."""
    sequence = turn.trace.sequence
    return () if sequence is None else sequence.stretch_layers[: len(sequence.stretches) - 1]


def positions(plain: Any, turns: Sequence[Turn], kept: Sequence[Tensor]) -> Tensor:
    """Position ids ``[B, L]`` (or ``[3, B, L]``) of every column where the columns ``kept`` are left."""
    parts = find_parts(plain)[1]
    mask = torch.cat([turn.mask for turn in turns], dim=1)
    if parts.grid_positions:
        own = oracle.positions(parts, turns[0].method, turns[0].inputs, kept)
        real = turns[0].mask
        last = own.masked_fill(~real, -1).amax(dim=(0, 2)) if own.dim() == 3 else own.masked_fill(~real, -1).amax(dim=1)
        behind = last[:, None] + mask[:, real.shape[1] :].long().cumsum(dim=1)
        return torch.cat([own, behind.expand(*own.shape[:-1], -1)], dim=-1)
    counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    lengths = [turn.mask.shape[1] for turn in turns]
    columns = torch.arange(mask.shape[1]).expand(mask.shape)
    cut = mask.clone()
    for row, own in enumerate(kept):
        cut[row, own] = False
    removed = cut.long().cumsum(dim=1)
    found, first = [], 0
    for turn, length in zip(turns, lengths, strict=True):
        own = slice(first, first + length)
        base = (counted if turn.counted else columns)[:, own]
        found.append(base - removed[:, own] if turn.method.positions == "compact" else base)
        first += length
    return torch.cat(found, dim=1)
