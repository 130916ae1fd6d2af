"""Random: a control. Patches drawn without looking at them (UniPruneBench, arXiv 2511.02650, asks for it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Method
from .policies import VisionPolicy
from .saliency import ragged
from .views import LayerView, Selection, TowerPass


@dataclass(frozen=True)
class Random(Method):
    """Every patch is equally likely to stay; the tower runs whole, the draw comes behind its last layer.

    The draw depends on ``seed`` and on the picture's own pixels: the same picture always keeps the same patches, alone
    or in a batch, and different pictures keep different ones.

    Attributes:
        seed: another seed, another draw.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "a control: patches drawn at random, seeded by the picture"
    stage: ClassVar[str] = "end of the tower"

    seed: int = 0

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return RandomPolicy(self, tower)


class RandomPolicy(VisionPolicy):
    """One draw for every image."""

    def __init__(self, method: Random, tower: TowerPass) -> None:
        self.seed = method.seed
        self.tower = tower

    def observe(self, view: LayerView) -> None:
        return

    def select(self, layer: int) -> Selection | None:
        if layer != self.tower.last_layer:
            return None
        rows = []
        for target, image in zip(self.tower.targets, self.tower.seeds(), strict=True):
            generator = torch.Generator().manual_seed((image ^ (self.seed * 0x9E3779B1)) % 2**63)
            drawn = torch.randperm(self.tower.patches, generator=generator)[:target]
            rows.append(drawn.sort().values.to(self.tower.device))
        return ragged(rows)
