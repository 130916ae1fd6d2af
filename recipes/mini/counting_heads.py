"""Shows the tower how to count: a loss on a few heads' attention.

Attention cannot add up, but it can compare. Where a patch looks to the same degree at every thing of its own noun, and
to a fixed one at CLS, the share that CLS gets tells how many there are. No token is dropped, and all other heads are
left to the alignment's loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .alignment import NUMBERS
from .scene import Scene

COUNTING_HEADS = ((-2, 1), (-2, 4), (-1, 2), (-1, 3))
"""Block, counted from the last one that is read, and head: those that came nearest before this loss was used."""

CLS_DEGREE = 3.0
"""How strongly CLS is to be looked at, where every thing has 1: shares from 3 in 4 (one thing) to 3 in 9 (six)."""

_SMALL = 1e-3


@contextmanager
def counting_heads(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Within it, a pass through the tower's blocks appends each of `COUNTING_HEADS` to the list that it gives.

    That is [scenes, 577, 577] attention probabilities, CLS first. A short tower lacks some of them.

    Args:
        blocks: the blocks that are read, with attention in its plain form.
    """
    seen: list[Tensor] = []

    def keep(head: int, module: nn.Module, given: tuple[object, ...], result: tuple[Tensor, Tensor]) -> None:
        seen.append(result[1][:, head])

    with ExitStack() as hooks:
        for block, head in COUNTING_HEADS:
            if -block <= len(blocks):
                hook = blocks[block].attention.register_forward_hook(partial(keep, head))
                hooks.callback(hook.remove)
        yield seen


def herds(scene: Scene) -> list[Tensor]:
    """For each noun that is there up to six times, [things, 576] bool: the patches of each of them."""
    owner = torch.tensor(scene.owner)
    found = []
    for indices in scene.by_noun().values():
        if len(indices) <= len(NUMBERS):
            owned = [owner == index for index in indices]
            touched = [torch.from_numpy(scene.touched[index]) for index in indices]
            things = [mine if mine.any() else other for mine, other in zip(owned, touched, strict=True)]
            found.append(torch.stack(things).flatten(1))
    return found


def counting(attention: Tensor, scene: Scene) -> Tensor:
    """How far the heads are from looking at every thing of a patch's own noun alike, and at CLS; 0 where they do.

    The divergence of the attention's shares from those wanted, on average over heads and over the patches of a noun;
    nouns weigh as much as they have things.

    Args:
        attention: [heads, 577, 577] of one scene, CLS first.
        scene: what the patches show.
    """
    total, weights = attention.new_zeros(()), 0
    for things in herds(scene):
        looking = attention[:, 1:][:, things.any(dim=0)]
        shares = torch.cat([looking[..., :1], looking[..., 1:] @ things.T.to(looking.dtype)], dim=-1)
        wanted = torch.tensor([CLS_DEGREE] + [1.0] * len(things)) / (CLS_DEGREE + len(things))
        divergence = (wanted * (wanted.log() - (shares + _SMALL).log())).sum(dim=-1)
        total = total + len(things) * divergence.mean()
        weights += len(things)
    return total / max(weights, 1)
