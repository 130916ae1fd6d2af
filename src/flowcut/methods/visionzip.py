"""VisionZip: dominant tokens by attention, contextual tokens merged from the rest (CVPR 2025, arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..algorithm.selection import best_first
from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, mean_keys, ragged, saliency, unit
from .views import LayerView, Merge, OutputView, TowerPass

SHARE = 10 / 64
"""Contextual tokens among all in the paper's settings: 10 of 64, 20 of 128, 30 of 192."""


@dataclass(frozen=True)
class VisionZip(Method):
    """Acts on the output of the last tower layer that is read, with that layer's attention and keys, as released.

    Where the tower has no CLS token, dominance is the mean attention received, as the paper has it.

    Differences from the released code: it counts the CLS token among the dominant ones and hands it to the language
    model; here all are patches, as the model itself drops CLS. It puts contextual tokens behind the dominant ones; here
    every token stands at its place in the picture. Where whole groups of patches are cut (pixel shuffle, Qwen), groups
    are what is ranked and merged. Features that Qwen3-VL reads from the middle of its tower are those of the patches
    that stand for a token, not merged.

    Attributes:
        dominant: tokens kept as they are.
        contextual: tokens merged from all the others. Give both (then ``target_num`` is their sum, and images that are
            cut to another number follow their proportion) or neither: the paper's proportion, 54 + 10 of 64.
    """

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "dominant patches by CLS attention, the rest merged into contextual tokens"
    stage: ClassVar[str] = "end of the tower"
    paper: ClassVar[str] = "CVPR 2025, arXiv 2412.04467"

    dominant: int | None = None
    contextual: int | None = None

    def __post_init__(self) -> None:
        given = (self.dominant, self.contextual)
        if given != (None, None):
            if any(not isinstance(number, int) or isinstance(number, bool) or number < 0 for number in given):
                raise ValueError(f"Give dominant and contextual as ints of at least 0, or neither, got {given!r}.")
            total = sum(number for number in given if number is not None)
            if self.target_num is None and self.retain_ratio is None:
                object.__setattr__(self, "target_num", total)
            if self.target_num is not None and self.target_num != total:
                raise ValueError(f"target_num={self.target_num} is not dominant + contextual, {total}. Leave it out.")
        super().__post_init__()

    def contextual_of(self, tokens: int) -> int:
        """How many of an image's ``tokens`` are contextual."""
        share = SHARE
        if self.dominant is not None and self.contextual is not None:
            share = self.contextual / (self.dominant + self.contextual)
        return round(tokens * share)

    @property
    def watches_tower(self) -> bool:
        return False

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return VisionZipPolicy(self, tower)


class VisionZipPolicy(VisionPolicy):
    """Waits for the last layer."""

    def __init__(self, method: VisionZip, tower: TowerPass) -> None:
        self.method = method
        self.tower = tower
        self.dominance: Tensor | None = None
        self.keys: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        if view.layer == self.tower.last_layer:
            self.dominance, self.keys = saliency(view), mean_keys(view)

    def reduce(self, view: OutputView) -> Merge | None:
        if view.layer != self.tower.last_layer:
            return None
        assert self.dominance is not None and self.keys is not None
        check_finite(view.layer, self.dominance, self.keys)
        rows, weights = [], self.keys.new_zeros(len(self.keys), max(self.tower.targets), self.tower.patches)
        for row, target in enumerate(self.tower.targets):
            contextual = 0 if target == self.tower.patches else self.method.contextual_of(target)
            index, own = zip_tokens(self.dominance[row], self.keys[row], target - contextual, contextual)
            rows.append(index)
            weights[row, : len(index)] = own
        chosen = ragged(rows)
        return Merge(chosen.index, chosen.counts, weights)


def zip_tokens(dominance: Tensor, keys: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor]:
    """The patches that stand for the tokens of one image, and what goes into each.

    Args:
        dominance: ``[N]``.
        keys: ``[N, D]``, compared by cosine.
        dominant: tokens with the highest dominance, kept as they are.
        contextual: evenly spaced ones among the others; the rest joins the most similar of them: a contextual token is
            its own state plus the mean of those that joined, as released.

    Returns:
        ``[K]`` ascending, and ``[K, N]`` weights.
    """
    patches = len(dominance)
    best = best_first(dominance, dominant)
    is_dominant = torch.zeros_like(dominance, dtype=torch.bool).index_fill(0, best, True)
    others = (~is_dominant).to(torch.uint8).sort(descending=True, stable=True).indices[: patches - dominant]
    weights = torch.eye(patches, device=keys.device)
    stay = is_dominant
    if contextual:
        step = max(1, len(others) // contextual)
        centre = torch.arange(0, len(others), step, device=keys.device)[:contextual]
        is_centre = torch.zeros(len(others), dtype=torch.bool, device=keys.device).index_fill(0, centre, True)
        joining = others[(~is_centre).to(torch.uint8).sort(descending=True, stable=True).indices[:-contextual]]
        nearest = (unit(keys[joining]) @ unit(keys[others[centre]]).T).argmax(dim=1)
        members = torch.zeros(contextual, patches, device=keys.device)
        members[nearest, joining] = 1.0
        weights[others[centre]] += members / members.sum(dim=1, keepdim=True).clamp(min=1.0)
        stay = is_dominant.index_fill(0, others[centre], True)
    index = stay.to(torch.uint8).sort(descending=True, stable=True).indices[: dominant + contextual]
    return index, weights[index]
