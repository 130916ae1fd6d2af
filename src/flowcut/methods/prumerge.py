"""LLaVA-PruMerge+: patches that stand out and evenly spaced ones, each with its neighbours merged in (ICCV 2025).

arXiv 2403.15388.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algorithm.selection import best_first
from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, ragged, unit
from .uniform import evenly
from .views import LayerView, Merge, OutputView, TowerPass


@dataclass(frozen=True)
class PruMerge(Method):
    """The variant with evenly spaced patches ("+"), at a given budget.

    Of the budget, ``attention_share`` are the patches with the highest CLS attention, the others but one lie evenly
    among the rest. Each takes in its ``neighbours`` most similar patches by key, weighted by their attention; one last
    token is the attention-weighted sum of all patches that are no centre.

    As released: one attention of the full width instead of heads; weights that are not normalised. Differences: the
    released code lets the number of outliers of every picture decide how many tokens stay (and samples about three
    evenly spaced ones for each); here the budget does, in that proportion. Its evenly spaced patches start at the first
    patch, in whole steps through the picture; here they are the middles of equal parts of what attention left. It takes
    queries and keys of the layer *behind* the features it merges; here they are those of the layer that puts the
    features out, as later ones do not run. The last token stands at the place of the most attended patch it holds.

    Attributes:
        attention_share: share of the centres chosen by attention.
        neighbours: patches that every centre takes in (released: 32).
    """

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "LLaVA-PruMerge+: outstanding and evenly spaced patches, neighbours merged in"
    stage: ClassVar[str] = "end of the tower"
    paper: ClassVar[str] = "ICCV 2025, arXiv 2403.15388"
    requires_cls: ClassVar[bool] = True

    attention_share: float = 0.25
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.attention_share <= 1.0:
            raise ValueError(f"attention_share must lie in [0, 1], got {self.attention_share!r}.")
        if not isinstance(self.neighbours, int) or isinstance(self.neighbours, bool) or self.neighbours < 0:
            raise ValueError(f"neighbours must be an int of at least 0, got {self.neighbours!r}.")

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return PruMergePolicy(self, tower)


class PruMergePolicy(VisionPolicy):
    """Waits for the last layer."""

    def __init__(self, method: PruMerge, tower: TowerPass) -> None:
        self.method = method
        self.tower = tower
        self.attention: Tensor | None = None
        self.keys: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        if view.layer != self.tower.last_layer:
            return
        query, key = (states.transpose(1, 2).flatten(2).float() for states in (view.query, view.key))
        logits = (query[:, :1] @ key.mT).squeeze(1) * query.shape[-1] ** -0.5
        attention = logits.softmax(dim=-1)[:, view.prefix :]
        self.attention = attention.reshape(len(attention), -1, view.group).mean(dim=-1)
        self.keys = key[:, view.prefix :].reshape(len(key), -1, view.group * key.shape[-1])

    def reduce(self, view: OutputView) -> Merge | None:
        if view.layer != self.tower.last_layer:
            return None
        assert self.attention is not None and self.keys is not None
        check_finite(view.layer, self.attention, self.keys)
        rows, weights = [], self.keys.new_zeros(len(self.keys), max(self.tower.targets), self.tower.patches)
        for row, target in enumerate(self.tower.targets):
            index, own = prune_and_merge(
                self.attention[row], self.keys[row], target, self.method.attention_share, self.method.neighbours
            )
            rows.append(index)
            weights[row, : len(index)] = own
        chosen = ragged(rows)
        return Merge(chosen.index, chosen.counts, weights)


def prune_and_merge(
    attention: Tensor, keys: Tensor, tokens: int, attention_share: float, neighbours: int
) -> tuple[Tensor, Tensor]:
    """The patches that stand for the tokens of one image, ascending ``[tokens]``, and weights ``[tokens, N]``.

    Args:
        attention: ``[N]``, of the CLS token.
        keys: ``[N, D]``, compared by cosine.
        tokens: how many; where all N stay, nothing is merged.
        attention_share, neighbours: see :class:`PruMerge`.
    """
    patches = len(attention)
    if tokens == patches:
        return torch.arange(patches, device=keys.device), torch.eye(patches, device=keys.device)
    centres = max(1, tokens - 1)
    ranking = attention.argsort(descending=True, stable=True)
    outstanding = max(1, round(centres * attention_share))
    others = ranking[outstanding:].sort().values
    spaced = others[evenly(len(others), centres - outstanding).to(keys.device)]
    centre = torch.cat([ranking[:outstanding], spaced])
    return merge_around(centre, attention, keys, neighbours, rest=tokens > 1)


def merge_around(centre: Tensor, attention: Tensor, keys: Tensor, neighbours: int, rest: bool) -> tuple[Tensor, Tensor]:
    """As :func:`prune_and_merge`, with the centres ``[K]`` given.

    Args:
        centre: distinct patches, in any order.
        attention, keys, neighbours: see :func:`prune_and_merge`.
        rest: whether one more token sums up the patches that are no centre.
    """
    patches = len(attention)
    weights = torch.eye(patches, device=keys.device)
    similarity = unit(keys)[centre] @ unit(keys).T
    similarity = similarity.scatter(1, centre[:, None], float("-inf"))
    nearest = best_first(similarity, min(neighbours, patches - 1))
    weights[centre] += torch.zeros_like(similarity).scatter(1, nearest, attention[nearest])
    chosen = centre
    if rest:
        left = attention.index_fill(0, centre, 0.0)
        last = attention.index_fill(0, centre, float("-inf")).argmax()
        weights = weights.index_copy(0, last[None], left[None])
        chosen = torch.cat([centre, last[None]])
    index = chosen.sort().values
    return index, weights[index]
