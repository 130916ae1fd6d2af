"""Shows the tower how to count: a loss on a few heads' attention.

Attention cannot add up, but it can compare. Where a patch looks to the same degree at every thing of its own noun, and
to a fixed one at CLS, the share that CLS gets tells how many there are. No token is dropped, and all other heads are
left to the alignment's loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from .alignment import NUMBERS
from .scene import Scene

COUNTING_HEADS = ((-2, 1), (-2, 4), (-1, 2), (-1, 3))
"""Block, counted from the last one that is read, and head: those that came nearest before this loss was used."""

CLS_DEGREE = 3.0
"""How strongly CLS is to be looked at, where every thing has 1: shares from 3 in 4 (one thing) to 3 in 9 (six)."""

_SMALL = 1e-3


class Watched:
    """Keeps the attention probabilities of the tower's last blocks, while it is entered.

    Args:
        blocks: the blocks, with attention in its plain form.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks = blocks
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.attentions: dict[int, Tensor] = {}

    def __enter__(self) -> Watched:
        for block in {block for block, _ in COUNTING_HEADS if -block <= len(self._blocks)}:
            module = self._blocks[block].attention
            self._hooks.append(module.register_forward_hook(self._keeper(block)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def heads(self) -> Tensor:
        """[scenes, heads, 577, 577] float32 attention of `COUNTING_HEADS`, CLS first."""
        chosen = [self.attentions[block][:, head] for block, head in COUNTING_HEADS if block in self.attentions]
        return torch.stack(chosen, dim=1).float()

    def _keeper(self, block: int) -> Callable[[nn.Module, tuple[object, ...], tuple[Tensor, Tensor]], None]:
        def keep(module: nn.Module, given: tuple[object, ...], result: tuple[Tensor, Tensor]) -> None:
            self.attentions[block] = result[1]

        return keep


def herds(scene: Scene) -> list[Tensor]:
    """For each noun that is there up to six times, [things, 576] bool: the patches of each of them."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    owner = torch.from_numpy(scene.owner.astype("int64")).reshape(-1)
    for index, item in enumerate(scene.items):
        if item.kind == "noun" and scene.touched[index].any():
            mine = owner == index
            found[item.name].append(mine if mine.any() else torch.from_numpy(scene.touched[index]).reshape(-1))
    return [torch.stack(things) for things in found.values() if len(things) <= len(NUMBERS)]


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
