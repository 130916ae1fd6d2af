"""The oracle: keeps the patches that a question is about, as the renderer's masks tell, and random others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from ..methods.base import Method
from ..methods.policies import VisionPolicy
from ..methods.views import LayerView, Selection, TowerPass
from .split import GRID

PATCHES = GRID * GRID


@dataclass(frozen=True)
class Oracle(Method):
    """Keeps given patches of the tower's output; the tower itself runs whole. A bound for methods, not a method.

    Attributes:
        patches: indices into the 24 x 24 grid, row by row, sorted; ``target_num`` of them.
    """

    name: ClassVar[str] = "oracle"
    summary: ClassVar[str] = "the patches asked about, filled up with random ones"
    reads_text: ClassVar[bool] = False

    patches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.patches) != self.target_num or list(self.patches) != sorted(set(self.patches)):
            raise ValueError(
                f"patches must be target_num={self.target_num} different indices in ascending order, got "
                f"{len(self.patches)} entries."
            )

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        """One cut, behind the last layer that the model reads."""
        if tower.patches != PATCHES:
            raise UnsupportedModelError(
                f"The masks of the scenes have {GRID} x {GRID} patches, this model's tower has {tower.patches}. Use "
                "the oracle with a model of 576 patches, such as flowcut-mini or LLaVA-1.5."
            )
        return OraclePolicy(self.patches, tower)


class OraclePolicy(VisionPolicy):
    """The one cut."""

    def __init__(self, patches: tuple[int, ...], tower: TowerPass) -> None:
        self.index = torch.tensor(patches, device=tower.device)
        self.images = len(tower.targets)
        self.last = tower.feature_layer - 1

    def observe(self, view: LayerView) -> None:
        """Nothing in the model matters here."""

    def select(self, layer: int) -> Selection | None:
        if layer != self.last:
            return None
        return Selection(self.index[None].expand(self.images, -1), (len(self.index),) * self.images)


def asked_patches(
    touched: NDArray[np.bool_], about: tuple[int, ...], budget: int, random: np.random.Generator, *, fill: bool = True
) -> tuple[int, ...]:
    """Sorted patch indices, at most ``budget``: what a question is about, then random others if ``fill``.

    Where the items have more patches than the budget, each gets the same share, spread over it evenly.

    Args:
        touched: ``[items, 24, 24]``, the patches in which each item is visible.
        about: the items that the question is about.
        budget: how many patches may be kept.
        random: draws the others.
        fill: whether there are others.
    """
    chosen: list[int] = []
    open_items = sorted((np.flatnonzero(touched[item]) for item in about), key=len)
    for number, patches in enumerate(open_items):
        share = (budget - len(chosen)) // (len(open_items) - number)
        picked = patches if len(patches) <= share else patches[evenly(len(patches), share)]
        chosen += [int(patch) for patch in picked if int(patch) not in chosen]
    if fill:
        others = np.setdiff1d(np.arange(PATCHES), chosen)
        chosen += [int(patch) for patch in random.permutation(others)[: budget - len(chosen)]]
    return tuple(sorted(chosen))


def evenly(length: int, count: int) -> NDArray[np.int64]:
    """``count`` indices spread over ``length``."""
    return np.linspace(0, length - 1, max(count, 0)).round().astype(np.int64)
