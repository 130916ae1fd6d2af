"""What was seen of the information flow while nothing was cut: numbers about every patch, layer by layer.

Everything is on the CPU and in float32, with the patches row by row whatever order a tower has them in. ``L`` vision
layers, ``N`` patches of one tile, ``U`` units: what FlowCut cuts as one, groups of patches where a model joins them
into visual tokens, else the patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithm import flow, schedule
from ..algorithm.selection import top_in_order
from ..methods.flowcut import FlowCut

if TYPE_CHECKING:
    from ..models.base import ImageLayout


@dataclass(frozen=True)
class PlannedCut:
    """One cut of FlowCut's schedule, as the flow of the uncut picture plans it.

    Attributes:
        layer: the vision layer after which it cuts.
        entropy_ratio: H / ln N over the patches that are left, which decides how many go.
        before: units before the cut.
        kept: units behind it, into :attr:`TileFlow.unit_grid`; int64, sorted.
    """

    layer: int
    entropy_ratio: float
    before: int
    kept: Tensor

    @property
    def cut(self) -> int:
        """Units that go."""
        return self.before - len(self.kept)


@dataclass(frozen=True)
class TileFlow:
    """The flow in one row of the vision tower's batch (a picture, a tile of one, a frame), or in one packed image.

    Padding of a tile, which no visual token stands for, is NaN; FlowCut does not look at it either.

    Attributes:
        grid: (height, width) of its patches, or (time, height, width) in a packed image.
        unit_grid: the same of its units.
        patches_of_unit: int64 ``[U, patches in each]``.
        global_token: ``"CLS"``, or ``"mean"`` where the mean over the image stands in for it.
        layers_read: so many layers are behind what the model reads; it may run others.
        feature_layer: as the schedule counts, see :class:`~flowcut.methods.views.TowerPass`.
        relation: A, the global token's attention to every patch, mean over heads, ``[L, N]``; with what goes to other
            tokens it sums to 1.
        semantic: M, the softmax of ``v_g . v_j``, mean over heads, ``[L, N]``.
        density: R, the L1 norm of the values' mean over heads, ``[L, N]``.
        score: S, ``[L, N]``.
        importance: C, the score of every unit accumulated over the layers, ``[L, U]``.
        entropy_ratio: H / ln N of the relation, ``[L]``: 1 where all patches get the same, 0 where one gets all.
        redundancy: mean cosine similarity of every patch with the others, in what a layer put out, ``[L, N]``.
        to_global: attention of every patch to the global token, mean over heads, ``[L, N]``, if it was asked for.
    """

    grid: tuple[int, ...]
    unit_grid: tuple[int, ...]
    patches_of_unit: Tensor
    global_token: str
    layers_read: int
    feature_layer: int
    relation: Tensor
    semantic: Tensor
    density: Tensor
    score: Tensor
    importance: Tensor
    entropy_ratio: Tensor
    redundancy: Tensor
    to_global: Tensor | None = None

    @property
    def layers(self) -> int:
        """Vision layers that were seen."""
        return len(self.relation)

    @property
    def patches(self) -> int:
        """Patches of the tile, its padding among them."""
        return math.prod(self.grid)

    @property
    def units(self) -> Tensor:
        """The units outside the padding, int64, sorted."""
        return self.importance[0].isfinite().nonzero()[:, 0]

    @property
    def relation_share(self) -> Tensor:
        """:attr:`relation` divided by its sum over the patches, ``[L, N]``."""
        return flow.share(self.relation)

    @property
    def semantic_share(self) -> Tensor:
        """:attr:`semantic` divided by its sum over the patches, ``[L, N]``."""
        return flow.share(self.semantic)

    @property
    def similarity(self) -> Tensor:
        """Mean cosine similarity of all pairs of patches, ``[L]``."""
        return self.redundancy.nanmean(dim=1)

    @property
    def cutting_layers(self) -> tuple[int, ...]:
        """The layers after which FlowCut cuts."""
        every = FlowCut.cut_every
        return tuple(layer for layer in range(self.layers) if schedule.cuts_after(layer, self.feature_layer, every))

    def planned(self, target: int) -> list[PlannedCut]:
        """What FlowCut's adaptive schedule would cut down to ``target`` units; its settings are the defaults.

        The first cut is FlowCut's own. Behind it the real tower goes on without what was cut, which changes what it
        computes; here the numbers of the uncut picture are used, restricted to the patches that are left.
        """
        alive, importance, cuts = self.units, None, []
        unit = self.patches_of_unit.shape[1]
        for layer in range(max(self.cutting_layers, default=-1) + 1):
            patches = self.patches_of_unit[alive].flatten()
            relation, semantic = (flow.share(part[layer, patches][None]) for part in (self.relation, self.semantic))
            scores = flow.score(relation, semantic, self.density[layer, patches])
            importance = flow.accumulate(importance, flow.group_means(scores, unit), FlowCut.history)
            if layer not in self.cutting_layers or len(alive) <= target:
                continue
            ratio = schedule.entropy_ratio(schedule.entropy(relation).tolist(), [len(patches)])
            remaining = schedule.layers_to_last_cut(layer, self.feature_layer)
            before = len(alive)
            left = before - schedule.cut_count(ratio, [before], [target], remaining)[0]
            index = top_in_order(importance, [left])[0]
            alive, importance = alive[index], importance[:, index]
            cuts.append(PlannedCut(layer, float(ratio[0]), before, alive))
        return cuts


@dataclass(frozen=True)
class LanguageFlow:
    """What the language model's layers looked at when the last token of the prompt was read.

    Attributes:
        layers: the decoder layers that were seen; those without attention of the usual kind are not.
        attention: of the last prompt token to every visual token of one image, mean over heads, ``[layers, tokens]``;
            with what goes to other tokens it sums to 1.
    """

    layers: tuple[int, ...]
    attention: Tensor


@dataclass(frozen=True)
class ImageFlow:
    """One picture, or one video.

    Attributes:
        modality: ``"image"`` or ``"video"``.
        tiles: its tiles or frames; a packed image (Qwen2-VL) or video has one entry.
        layout: how its patches become visual tokens.
        language: what the language model looked at; ``None`` where that was not asked for, or no prompt followed.
        targets: gives the units that leave the tower of every tile, under a method.
    """

    modality: str
    tiles: tuple[TileFlow, ...]
    layout: ImageLayout
    targets: Callable[[FlowCut], tuple[int, ...]]
    language: LanguageFlow | None = None

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the prompt that stand for it."""
        return len(self.layout.tokens)

    @property
    def looked_at(self) -> Tensor:
        """The attention of :attr:`language` at the units of all tiles, ``[layers, tiles * U]``.

        A unit that no visual token stands for gets 0; of tokens between patches, the nearest patch counts. Where
        patches are pooled behind the tower, it has an entry for every pooled token instead.

        Raises:
            ValueError: the language model was not seen.
        """
        if self.language is None:
            raise ValueError("The language model was not seen: observe(model, language=True), and give it a prompt.")
        pooled = self.layout.pooled
        units = len(self.tiles[0].patches_of_unit) if pooled is None else len(pooled)
        tokens = self.layout.tokens
        spread = torch.zeros(len(self.language.layers), len(self.tiles) * units)
        return spread.index_add(1, tokens[tokens >= 0], self.language.attention[:, tokens >= 0])

    def planned(self, target_num: int | None = 64, *, retain_ratio: float | None = None) -> list[list[PlannedCut]]:
        """What FlowCut's schedule would cut in every tile; see :meth:`TileFlow.planned`.

        Args:
            target_num: the budget of the image in visual tokens; ``None`` where ``retain_ratio`` is given.
            retain_ratio: the same as a share of its tokens.

        Raises:
            ValueError, UnsupportedModelError: the budget does not fit the image, as when a method is attached.
        """
        targets = self.targets(FlowCut(target_num=target_num, retain_ratio=retain_ratio))
        return [tile.planned(target) for tile, target in zip(self.tiles, targets, strict=True)]
