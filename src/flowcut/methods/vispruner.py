"""VisPruner: half of the tokens by attention, half the least similar of the rest (ICCV 2025, arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algorithm.compiling import STEPS, compiled, wanted
from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, ragged, saliency, unit
from .views import LayerView, OutputView, Selection, TowerPass

GONE = float("inf")
"""The place of a token that does not compete."""


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
    normed = unit(features)
    rest = without_duplicates(normed @ normed.T, left, diverse, step)
    return torch.cat([ranking[:important], rest]).sort().values


def without_duplicates(cosines: Tensor, rest: Tensor, diverse: int, step: int) -> Tensor:
    """What is left when duplicates are removed, int64 ``[diverse]``.

    Args:
        cosines: ``[N, N]``, of all tokens.
        rest: int64 ``[M]``, those that compete, in order.
        diverse: how many stay.
        step: how many are removed in a round, at most.
    """
    # Rounds that take a whole step out of the first set can be compiled.
    rounds = (len(rest) - max(diverse, step - 1)) // step
    if rounds >= STEPS and wanted():
        order = torch.arange(len(rest), dtype=cosines.dtype, device=cosines.device)
        places = torch.full_like(cosines[0], GONE).scatter(0, rest, order)
        together = compiled(removal_rounds, cosines, places, step, STEPS)
        if together is not None:
            calls = rounds // STEPS
            for _ in range(calls):
                places = together(cosines, places, step, STEPS)
            rest = places.argsort()[: len(rest) - calls * STEPS * step]
    # The second set, below all cosines, goes last, in its order.
    duplicate = cosines.new_full((len(rest),), -2.0)
    while len(rest) > diverse:
        torch.amax(cosines[rest[::2, None], rest[1::2]], dim=1, out=duplicate[: len(rest) : 2])
        removed = min(step, len(rest) - diverse, (len(rest) + 1) // 2)
        rest = rest[duplicate[: len(rest)].argsort(descending=True, stable=True)[removed:]]
    return rest


def removal_rounds(cosines: Tensor, places: Tensor, step: int, rounds: int) -> Tensor:
    """Rounds of :func:`without_duplicates` that sort nothing, in a form of two or three kernels each where compiled.

    Args:
        cosines: ``[N, N]``.
        places: ``[N]``, where in the order every token stands, in float32; infinity for what does not compete.
        step: how many are removed in a round.
        rounds: how many rounds.

    Returns:
        ``[N]``, the places behind them.
    """
    for _ in range(rounds):
        # 0 in the first set, 1 in the second; NaN for what does not compete, which equals neither.
        which = places - 2.0 * (places / 2.0).floor()
        duplicate = torch.where(which[None] == 1.0, cosines, -2.0).amax(dim=1)
        # The second set, below all cosines, goes last, in its order.
        duplicate = torch.where(which == 0.0, duplicate, -2.0)
        duplicate = torch.where(places == GONE, -GONE, duplicate)
        # As many as go before a token in a stable sort. Counted in float32, which a CPU does several of at once.
        others, own = duplicate[None], duplicate[:, None]
        ahead = torch.where(others == own, places[None] < places[:, None], others > own)
        ranks = ahead.sum(dim=1, dtype=places.dtype) - step
        places = torch.where((places == GONE) | (ranks < 0.0), GONE, ranks)
    return places
