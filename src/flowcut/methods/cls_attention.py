"""CLS attention: a control. The patches that the CLS token attends to most in one single layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..algorithm.selection import top_in_order
from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, saliency
from .views import LayerView, Selection, TowerPass


@dataclass(frozen=True)
class ClsAttention(Method):
    """The score that many methods start from (FasterVLM, arXiv 2412.01818, uses nothing else), without anything added.

    The tower runs whole; the cut comes in its last layer that is read.

    Attributes:
        layer: 0-based layer whose attention ranks the patches, mean over heads; by default the last one that is read
            (LLaVA-1.5: 22 of 24).
    """

    name: ClassVar[str] = "cls_attention"
    summary: ClassVar[str] = "a control: attention of the CLS token in one layer"
    stage: ClassVar[str] = "end of the tower"
    requires_cls: ClassVar[bool] = True

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layer = self.layer
        if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 0):
            raise ValueError(f"layer must be a 0-based vision layer, or None for the last one read, got {layer!r}.")

    @property
    def watches_tower(self) -> bool:
        return self.layer is not None

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return ClsAttentionPolicy(self, tower)


class ClsAttentionPolicy(VisionPolicy):
    """Remembers the attention of the chosen layer until the tower's end."""

    def __init__(self, method: ClsAttention, tower: TowerPass) -> None:
        self.tower = tower
        self.layer = tower.last_layer if method.layer is None else method.layer
        if self.layer > tower.last_layer:
            raise ValueError(
                f"layer={self.layer} lies behind the last vision layer that the model reads, number "
                f"{tower.last_layer}; layers count from 0."
            )
        self.importance: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        if view.layer == self.layer:
            self.importance = saliency(view)

    def select(self, layer: int) -> Selection | None:
        if layer != self.tower.last_layer:
            return None
        assert self.importance is not None
        check_finite(self.layer, self.importance)
        return Selection(top_in_order(self.importance, self.tower.targets), self.tower.targets)
