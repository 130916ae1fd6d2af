"""FlowCut at work in one pass through a vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithm import flow, schedule
from ..algorithm.selection import best_first, gather_tokens, top_in_order
from ..errors import NonFiniteError
from .fixed_schedule import fixed_schedule
from .policies import VisionPolicy
from .views import LayerView, Selection, TowerPass

if TYPE_CHECKING:
    from .flowcut import FlowCut


class FlowCutPolicy(VisionPolicy):
    """Scores every layer and cuts by schedule, each image for itself.

    Between two cuts it takes only a glimpse of every layer; they are compared where the next cut needs their scores.
    """

    def __init__(self, method: FlowCut, tower: TowerPass) -> None:
        self.method = method
        self.feature_layer = tower.feature_layer
        self.targets = tower.targets
        self.ranks = tower.ranks
        self.pools = tower.frames if method.video_budget == "pooled" else ()
        self.fixed = fixed_schedule(method.schedule, tower, method.cut_every)
        self.semantic = method.criteria == "all" and (method.packed_semantic or not tower.packed)
        self.counts: tuple[int, ...] = (tower.patches,) * len(tower.targets)
        self.importance: Tensor | None = None
        self.relation: Tensor | None = None
        self.group = 1
        self.prefix = 0
        self.valid: Tensor | None = None
        self._glimpses: dict[int, flow.Glimpse] = {}
        self._scores: dict[int, Tensor] = {}

    def observe(self, view: LayerView) -> None:
        if self.counts == self.targets and not self.ranks:
            return
        if self.ranks and schedule.layers_to_last_cut(view.layer, self.feature_layer) < 0:
            return
        self.valid, self.prefix, self.group = view.valid, view.prefix, view.group
        scale = view.scaling if self.method.scale_semantic else 1.0
        self._glimpses[view.layer] = view.glimpse(
            semantic_scale=scale if self.semantic else None, with_density=self.method.criteria == "all"
        )

    def select(self, layer: int) -> Selection | None:
        if self.counts == self.targets:
            return None
        if not schedule.cuts_after(layer, self.feature_layer, self.method.cut_every):
            return None
        importance = self._compare()
        counts = self._counts_after(layer)
        valid = None if self.valid is None else self.valid[:, self.prefix :: self.group]
        if self.pools and schedule.layers_to_last_cut(layer, self.feature_layer) == 0:
            counts = pooled_counts(importance, self.targets, self.pools, valid)
            self.targets = counts
        if counts == self.counts:
            return None
        index = top_in_order(importance, counts, valid)
        self.importance = gather_tokens(importance, index)
        self.counts = counts
        return Selection(index, counts)

    def choose_pooled(self, weights: Tensor, targets: tuple[int, ...]) -> Selection:
        importance = self.rank() @ weights.mT
        counts = pooled_counts(importance, targets, self.pools, None) if self.pools else targets
        return Selection(top_in_order(importance, counts), counts)

    def rank(self) -> Tensor:
        importance = self._compare()
        self._check(importance.sum(dim=1).tolist())
        return importance

    def _compare(self) -> Tensor:
        """The importance of every patch, with the layers that were seen since the last cut."""
        if self._glimpses:
            scores, self.relation = flow.compare(list(self._glimpses.values()), self.prefix, self.valid)
            scores = flow.group_means(scores, self.group)
            self._scores = dict(zip(self._glimpses, scores.unbind(dim=1), strict=True))
            for current in self._scores.values():
                self.importance = flow.accumulate(self.importance, current, self.method.history)
            self._glimpses.clear()
        assert self.importance is not None
        return self.importance

    def _counts_after(self, layer: int) -> tuple[int, ...]:
        """Patches left after this cut; without a fixed schedule the one place per cut where the host waits."""
        remaining = schedule.layers_to_last_cut(layer, self.feature_layer)
        cut = self._adaptive_cut(remaining) if self.fixed is None else self.fixed.cut(layer)
        return tuple(count - lost for count, lost in zip(self.counts, cut, strict=True))

    def _adaptive_cut(self, remaining: int) -> Sequence[int]:
        """How many patches each image loses, ``remaining`` layers before the last cut."""
        assert self.importance is not None and self.relation is not None
        known: list[float] = torch.cat([self.importance.sum(dim=1), schedule.entropy(self.relation)]).tolist()
        self._check(known[: len(self.counts)])
        if not self.method.adaptive:
            cut = schedule.even_count(self.counts, self.targets, remaining, self.method.cut_every)
        else:
            patches = [count * self.group for count in self.counts]
            ratio = schedule.entropy_ratio(known[len(self.counts) :], patches)
            cut = schedule.cut_count(ratio, self.counts, self.targets, remaining)
        if not self.method.couple_batch:
            return cut
        return [min(max(cut), count - target) for count, target in zip(self.counts, self.targets, strict=True)]

    def _check(self, sums: list[float]) -> None:
        """Refuse to rank patches whose importance is not finite, by its sum in every image.

        Raises:
            NonFiniteError: names the layer.
        """
        if all(map(isfinite, sums)):
            return
        raise not_finite(next(layer for layer, scores in self._scores.items() if not bool(scores.isfinite().all())))


def not_finite(layer: int) -> NonFiniteError:
    """The error for a vision layer whose tokens cannot be ranked."""
    return NonFiniteError(
        f"Vision layer {layer} produced NaN or infinite attention inputs, so its tokens cannot be "
        "ranked. Check the pixel values and the model's dtype (float16 can overflow; try bfloat16)."
    )


def pooled_counts(
    importance: Tensor, targets: tuple[int, ...], pools: tuple[int, ...], valid: Tensor | None
) -> tuple[int, ...]:
    """How many patches each frame keeps where the frames of a video compete for its budget.

    Args:
        importance: ``[frames, N]``, the frames of all videos.
        targets: each frame's equal share; a video's budget is their sum.
        pools: frames of each video.
        valid: ``[frames, N]``, false in padding.
    """
    if valid is not None:
        importance = importance.masked_fill(~valid, float("-inf"))
    # The best patch of a frame always stays: attention over no patch at all is not defined without CLS.
    ranked = importance.scatter(1, importance.argmax(dim=1, keepdim=True), float("inf"))
    counts: list[Tensor] = []
    first = 0
    for frames in pools:
        budget = sum(targets[first : first + frames])
        chosen = best_first(ranked[first : first + frames].flatten(), budget)
        counts.append(torch.bincount(chosen // importance.shape[1], minlength=frames))
        first += frames
    kept: list[int] = torch.cat(counts).tolist()
    return tuple(kept)
