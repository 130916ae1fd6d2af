"""DivPrune: the most diverse subset of the visual tokens (CVPR 2025, arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Method
from .policies import ProjectorPolicy
from .saliency import unit
from .views import ProjectedView


@dataclass(frozen=True)
class DivPrune(Method):
    """Maximises the smallest cosine distance between any two kept tokens, greedily, on projected features.

    As released; tokens that were chosen are never chosen again, which matters only where tokens are identical.
    """

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "the tokens that differ most from one another (max-min cosine distance)"
    stage: ClassVar[str] = "behind the projector"
    paper: ClassVar[str] = "CVPR 2025, arXiv 2503.02175"
    cuts_tower: ClassVar[bool] = False
    cuts_projected: ClassVar[bool] = True

    def projector_policy(self) -> ProjectorPolicy:
        return DivPrunePolicy()


class DivPrunePolicy(ProjectorPolicy):
    """Looks at features only."""

    def select(self, view: ProjectedView) -> Tensor:
        return most_diverse(view.features, view.target)


def most_diverse(features: Tensor, chosen: int) -> Tensor:
    """Greedy max-min selection; int64 ``[chosen]``, ascending.

    The first token is the one whose nearest neighbour is farthest away; every other the one whose nearest chosen token
    is farthest away. Distances are ``1 - cosine``.

    Args:
        features: ``[N, width]``.
        chosen: how many, at least 1 and at most N.
    """
    normed = unit(features)
    distance = 1.0 - normed @ normed.T
    neighbours = distance.topk(min(2, len(features)), dim=0, largest=False).values[-1]
    # What is chosen drops to -inf, and a minimum keeps it there.
    distance.fill_diagonal_(float("-inf"))
    picked = [neighbours.argmax(dim=0, keepdim=True)]
    nearest: Tensor | None = None
    for _ in range(chosen - 1):
        others = distance.index_select(0, picked[-1])[0]
        nearest = others if nearest is None else torch.minimum(nearest, others)
        picked.append(nearest.argmax(dim=0, keepdim=True))
    return torch.cat(picked).sort().values
