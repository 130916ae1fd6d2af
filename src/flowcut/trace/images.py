"""What happened to the images of a forward pass: patches that were cut, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..models.base import ImageLayout


@dataclass(frozen=True)
class TileTrace:
    """One row of the vision tower's batch: a picture, a tile of one, or a frame of a video.

    Attributes:
        kept: indices of the patches that left the tower, into its patch grid (row-major), sorted; int64 ``[K]``.
        patches: patches of the uncut tile.
        tokens_after_layer: tokens alive after every vision layer, prefix tokens such as CLS included; the layers
            behind ``layers_run`` repeat the last count.
        layers_run: vision layers that ran; those behind the feature layer do not.
        kept_after_layer: the patches alive after each layer that cut, by layer.
        unit: how many of the tower's tokens make up one entry of ``kept`` and ``patches``: 1, or those of a group
            where whole groups are cut (pixel shuffle, Qwen2-VL); ``tokens_after_layer`` counts the tower's tokens.
        pairs_in_layer: (query, key) pairs in every layer's attention where it works within frames or windows.
        uncut_pairs: the same in the uncut tower.
        entered: patches that entered the tower, where the picture was scaled down; else all.
        cut_behind: the layers whose cut was chosen from their output, so that every token passed through all of them.
        merged: boolean ``[K, patches]``, the patches that went into each token; ``None`` where none were merged.
        spare: patches that left the tower beside ``kept`` since it cannot run on none, and were left out behind it.
        handed_on: ``[K, C]``, numbers about each for the method's cut behind the projector, if there are any.
    """

    kept: Tensor
    patches: int
    tokens_after_layer: list[int]
    layers_run: int
    kept_after_layer: dict[int, Tensor]
    unit: int = 1
    pairs_in_layer: list[int] | None = None
    uncut_pairs: list[int] | None = None
    entered: int | None = None
    cut_behind: tuple[int, ...] = ()
    merged: Tensor | None = None
    spare: int = 0
    handed_on: Tensor | None = None

    @property
    def tokens(self) -> int:
        """The tower's tokens of the uncut tile, without prefix tokens."""
        return self.patches * self.unit

    @property
    def tokens_embedded(self) -> int:
        """The tower's tokens in front of its first layer, without prefix tokens."""
        return (self.patches if self.entered is None else self.entered) * self.unit

    @property
    def tokens_into_layer(self) -> list[int]:
        """Tokens entering every vision layer that ran."""
        if not self.tokens_after_layer:
            return []
        alive_at_first = self.tokens_embedded + self.tokens_after_layer[-1] - (len(self.kept) + self.spare) * self.unit
        return [alive_at_first, *self.tokens_after_layer][: self.layers_run]

    @property
    def tokens_through_layer(self) -> list[int]:
        """Tokens in the MLP of every vision layer that ran."""
        return [
            into if layer in self.cut_behind else after
            for layer, (into, after) in enumerate(zip(self.tokens_into_layer, self.tokens_after_layer, strict=False))
        ]


@dataclass(frozen=True)
class ImageTrace:
    """One image on its way through the vision tower.

    Attributes:
        tiles: what happened to every tile; LLaVA-1.5 has one.
        layout: how its patches become visual tokens.
        placeholder_kept: boolean, one for each visual token of the prompt: which of them stay.
        visual_tokens: how many stay and enter the language model.
        target: how many may stay in the end, after cuts inside the language model.
        chosen: where tokens were cut behind the projector, or are interpolated between patches, the places in ``grid``
            of those that stayed (the nearest patches), sorted.
        counted: where the tower was not taken apart, gives its FLOPs for this image, its projector's included.
    """

    tiles: tuple[TileTrace, ...]
    layout: ImageLayout
    placeholder_kept: Tensor
    visual_tokens: int
    target: int
    chosen: Tensor | None = None
    counted: Callable[[], int] | None = None

    @property
    def counted_flops(self) -> int:
        """FLOPs of a tower and projector that were not taken apart; 0 of others, which have formulas."""
        return 0 if self.counted is None else self.counted()

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid that ``kept`` counts in: (height, width), or (tiles, height, width) where the model cuts images into
        tiles, or (time, height, width) for videos and in Qwen2-VL; in patches, or in groups where groups are cut."""
        return self.layout.grid

    @property
    def patches(self) -> int:
        """Patches of the uncut image, over all tiles; where its patches are pooled, the pooled tokens."""
        return sum(self._per_tile)

    @property
    def _per_tile(self) -> list[int]:
        """Entries of the grid that every tile has."""
        pooled = self.layout.pooled
        return [tile.patches if pooled is None else len(pooled) for tile in self.tiles]

    @property
    def projected(self) -> int:
        """Tokens that the uncut model takes through its projector."""
        return self.placeholders if self.layout.complete else sum(tile.patches for tile in self.tiles)

    @property
    def projected_now(self) -> int:
        """Tokens that went through the projector."""
        if self.layout.pooled is not None or self.layout.spread:
            return self.projected
        spare = sum(tile.spare for tile in self.tiles)
        if self.chosen is None:
            return self.visual_tokens + spare
        left = sum(len(tile.kept) for tile in self.tiles) + spare
        return left if left < sum(tile.patches for tile in self.tiles) else self.projected

    @property
    def placeholders(self) -> int:
        """Visual tokens of the uncut image, as they are counted in the prompt."""
        return len(self.placeholder_kept)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut, neither in the tower nor later (the budget covers the whole image)."""
        return self.visual_tokens == self.placeholders == self.target

    @property
    def kept(self) -> Tensor:
        """Indices of the patches (or groups, or pooled tokens) that stay, into ``grid``, sorted; int64 ``[K]``.

        Where patches were merged, each stands for one token; :attr:`sources` tells what went into it.
        """
        if self.chosen is not None:
            return self.chosen
        if self.layout.pooled is not None:
            return self.placeholder_kept[: self.patches].nonzero()[:, 0]
        return self._flat([tile.kept for tile in self.tiles])

    @property
    def sources(self) -> list[Tensor]:
        """For every entry of ``kept`` the patches that went into that token, sorted; itself, where none were merged."""
        if self.chosen is not None or self.layout.pooled is not None:
            return list(self.kept[:, None])
        sources: list[Tensor] = []
        for number, tile in enumerate(self.tiles):
            first = number * self.tiles[0].patches
            rows = tile.kept[:, None] if tile.merged is None else [row.nonzero()[:, 0] for row in tile.merged]
            sources += [row + first for row in rows]
        return sources

    @property
    def kept_after_layer(self) -> dict[int, Tensor]:
        """The patches alive after each layer that cut (all of a tile that did not cut there), by layer."""
        if self.layout.pooled is not None or self.layout.blend is not None:
            return {} if self.whole else {self.tiles[0].layers_run - 1: self.kept}
        alive = [torch.arange(tile.patches, device=tile.kept.device) for tile in self.tiles]
        after: dict[int, Tensor] = {}
        for layer in sorted({layer for tile in self.tiles for layer in tile.kept_after_layer}):
            alive = [tile.kept_after_layer.get(layer, before) for tile, before in zip(self.tiles, alive, strict=True)]
            after[layer] = self._flat(alive)
        return after

    @property
    def tokens_after_layer(self) -> list[int]:
        """Tokens alive after every vision layer, prefix tokens included, over all tiles."""
        return [sum(counts) for counts in zip(*(tile.tokens_after_layer for tile in self.tiles), strict=True)]

    @property
    def tokens_into_layer(self) -> list[int]:
        """Tokens entering every vision layer that ran, over all tiles."""
        return [sum(counts) for counts in zip(*(tile.tokens_into_layer for tile in self.tiles), strict=True)]

    def _flat(self, kept: list[Tensor]) -> Tensor:
        return torch.cat([indices + number * self.tiles[0].patches for number, indices in enumerate(kept)])
