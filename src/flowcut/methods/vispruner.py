"""VisPruner: half of the tokens by attention, half the least similar of the rest (ICCV 2025, arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, ragged, saliency, unit
from .views import LayerView, OutputView, Selection, TowerPass


@dataclass(frozen=True)
class VisPruner(Method):
    """Ranks by the CLS attention of the layer that puts the features out and compares those features, as released.

    Without a CLS token the mean attention received takes its place.

    Attributes:
        important_ratio: share of the tokens chosen by attention (released: 0.5); the others are what is left when
            duplicates are removed from the rest, ``step`` of them at a time.
        step: see above (released: 8).
    """

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "important patches by CLS attention, and diverse ones without duplicates"
    stage: ClassVar[str] = "end of the tower"
    paper: ClassVar[str] = "ICCV 2025, arXiv 2412.01818"

    important_ratio: float = 0.5
    step: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.important_ratio <= 1.0:
            raise ValueError(f"important_ratio must lie in [0, 1], got {self.important_ratio!r}.")
        if not isinstance(self.step, int) or isinstance(self.step, bool) or self.step < 1:
            raise ValueError(f"step must be an int of at least 1, got {self.step!r}.")

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return VisPrunerPolicy(self, tower)


class VisPrunerPolicy(VisionPolicy):
    """Waits for the last layer."""

    def __init__(self, method: VisPruner, tower: TowerPass) -> None:
        self.method = method
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
        return ragged(
            [
                important_and_diverse(
                    attention, states, target, int(target * self.method.important_ratio), self.method.step
                )
                for attention, states, target in zip(self.attention, view.states, self.tower.targets, strict=True)
            ]
        )


def important_and_diverse(attention: Tensor, features: Tensor, tokens: int, important: int, step: int) -> Tensor:
    """The tokens of one image that stay, int64 ``[tokens]``, ascending.

    Args:
        attention: ``[N]``.
        features: ``[N, width]``, compared by cosine.
        tokens: how many.
        important: how many of them by attention. The others compete: split into two alternating sets, those of the
            first set that are most similar to one of the second go, ``step`` at a time.
    """
    ranking = attention.argsort(descending=True, stable=True)
    left, diverse = ranking[important:], tokens - important
    if not diverse:
        return ranking[:important].sort().values
    # With its position behind each token's features, one look-up takes both along; float32 holds it exactly.
    rest = torch.cat([unit(features), torch.arange(len(features), device=features.device)[:, None]], dim=1)[left]
    # The second set, below all cosines, goes last, in its order.
    duplicate = rest.new_full((len(rest),), -2.0)
    while len(rest) > diverse:
        normed = rest[:, :-1]
        torch.amax(normed[::2] @ normed[1::2].T, dim=1, out=duplicate[: len(rest) : 2])
        removed = min(step, len(rest) - diverse, (len(rest) + 1) // 2)
        rest = rest[duplicate[: len(rest)].argsort(descending=True, stable=True)[removed:]]
    return torch.cat([ranking[:important], rest[:, -1].long()]).sort().values
