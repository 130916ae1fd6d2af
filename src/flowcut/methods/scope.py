"""SCOPE: tokens that cover the others, weighted by saliency (NeurIPS 2025, arXiv 2510.24214)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algorithm.coverage import covering
from ..algorithm.selection import in_order
from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, saliency, unit
from .views import LayerView, OutputView, Selection, TowerPass


@dataclass(frozen=True)
class Scope(Method):
    """Greedy: the token whose choice adds most coverage times its CLS attention to the power of ``alpha``.

    Features and attention are those of the last layer that is read, as released. Without a CLS token the mean attention
    received takes its place. An image of several tiles has a budget for each here.

    Attributes:
        alpha: exponent of the saliency (released: 1).
    """

    name: ClassVar[str] = "scope"
    summary: ClassVar[str] = "greedy coverage of all tokens, weighted by CLS attention"
    stage: ClassVar[str] = "end of the tower"
    paper: ClassVar[str] = "NeurIPS 2025, arXiv 2510.24214"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha >= 0.0:
            raise ValueError(f"alpha must be at least 0 (0 looks at coverage only), got {self.alpha!r}.")

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return ScopePolicy(self, tower)


class ScopePolicy(VisionPolicy):
    """Waits for the last layer."""

    def __init__(self, method: Scope, tower: TowerPass) -> None:
        self.alpha = method.alpha
        self.tower = tower
        self.attention: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        if view.layer == self.tower.last_layer:
            self.attention = saliency(view)

    def reduce(self, view: OutputView) -> Selection | None:
        if view.layer != self.tower.last_layer:
            return None
        assert self.attention is not None
        check_finite(view.layer, self.attention, view.states)
        index = salient_cover(view.states, self.attention**self.alpha, self.tower.targets)
        return Selection(index, self.tower.targets)


def salient_cover(features: Tensor, saliency: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The tokens that stay of every image, all of which take their steps together.

    A set covers a token by the largest cosine between it and one of the set (0 for the empty set).

    Args:
        features: ``[B, N, width]``.
        saliency: ``[B, N]``, factor on the coverage that a token adds.
        counts: how many of each image.

    Returns:
        int64 ``[B, max(counts)]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
    """
    images, tokens, _ = features.shape
    normed = unit(features)
    # What every token would cover anew of every other: at first its similarity to it.
    new = torch.matmul(normed, normed.mT).relu_()
    nothing = torch.zeros(images, tokens, device=features.device)
    return in_order(covering(new, nothing, saliency, None, max(counts)), counts, tokens)
