"""The recording as a policy: it is shown what every method is shown, computes what FlowCut computes, cuts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...algorithm import flow, schedule
from ...algorithm.looking import attention_to_global
from ...methods.base import Method
from ...methods.flowcut import FlowCut
from ...methods.policies import VisionPolicy
from ...methods.views import LayerView, TowerPass


@dataclass(frozen=True)
class Numbers:
    """What :class:`~flowcut.trace.TileFlow` holds, for several rows: ``[B, L, ...]`` on the CPU.

    Attributes:
        relation, semantic, density, score, importance, to_global: see there.
        entropy: H of the relation, ``[B, L]``.
    """

    relation: Tensor
    semantic: Tensor
    density: Tensor
    score: Tensor
    importance: Tensor
    entropy: Tensor
    to_global: Tensor | None


@dataclass(frozen=True)
class Watching(Method):
    """Looks at every layer, as FlowCut with its default settings does, and cuts nothing.

    Attributes:
        regroup: int64 ``[N]``, the patches of each unit one after the other, where they do not follow one another.
        unit: patches of each.
        received: whether to compute the attention that every patch pays to the global token.
    """

    name: ClassVar[str] = "watching"
    summary: ClassVar[str] = "looks at every layer and cuts nothing"
    stage: ClassVar[str] = "tower"

    retain_ratio: float | None = 1.0
    regroup: Tensor | None = None
    unit: int = 1
    received: bool = False

    def vision_policy(self, tower: TowerPass) -> RecordingPolicy:
        return RecordingPolicy(self, tower.feature_layer)


class RecordingPolicy(VisionPolicy):
    """The numbers of rows with equally many patches; layers are compared where FlowCut compares them."""

    def __init__(self, method: Watching, feature_layer: int) -> None:
        self.method = method
        self.feature_layer = feature_layer
        self.prefix = 0
        self._glimpses: list[flow.Glimpse] = []
        self._terms: list[flow.Terms] = []
        self._importance: list[Tensor] = []
        self._received: list[Tensor] = []

    def observe(self, view: LayerView) -> None:
        self.prefix = view.prefix
        self._glimpses.append(view.glimpse())
        if self.method.received:
            self._received.append(attention_to_global(view.query, view.key, view.scaling, view.prefix))
        if schedule.cuts_after(view.layer, self.feature_layer, FlowCut.cut_every):
            self._compare()

    def _compare(self) -> None:
        if not self._glimpses:
            return
        terms = flow.terms_of(self._glimpses, self.prefix)
        scores = terms.scores if self.method.regroup is None else terms.scores[..., self.method.regroup]
        for current in flow.group_means(scores, self.method.unit).unbind(dim=1):
            before = self._importance[-1] if self._importance else None
            self._importance.append(flow.accumulate(before, current, FlowCut.history))
        self._terms.append(terms)
        self._glimpses = []

    def finish(self) -> Numbers:
        """The numbers of all layers that were seen."""
        self._compare()
        weights = torch.cat([terms.weights for terms in self._terms], dim=1).cpu()
        densities = [terms.density for terms in self._terms if terms.density is not None]
        return Numbers(
            relation=weights[:, :, 0],
            semantic=weights[:, :, 1],
            density=torch.cat(densities, dim=1).cpu(),
            score=torch.cat([terms.scores for terms in self._terms], dim=1).cpu(),
            importance=torch.stack(self._importance, dim=1).cpu(),
            entropy=torch.cat([schedule.entropy(terms.shares[:, :, 0]) for terms in self._terms], dim=1).cpu(),
            to_global=torch.stack(self._received, dim=1).cpu() if self._received else None,
        )
