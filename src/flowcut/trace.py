"""What happened in the last forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .counting import Flops, ModelCosts

if TYPE_CHECKING:
    from .models.base import ImageLayout
    from .stages.decoder_pass import Stretch


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
        alive_at_first = self.tokens_embedded + self.tokens_after_layer[-1] - len(self.kept) * self.unit
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
    """

    tiles: tuple[TileTrace, ...]
    layout: ImageLayout
    placeholder_kept: Tensor
    visual_tokens: int
    target: int
    chosen: Tensor | None = None

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
        whole_tower = self.layout.pooled is not None or self.chosen is not None
        return self.projected if whole_tower else self.visual_tokens

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


@dataclass(frozen=True)
class SequenceTrace:
    """The prompts of one forward pass, one entry per sample.

    Attributes:
        visual_tokens: visual tokens entering the language model.
        stretches: the columns that each run of decoder layers saw; one, unless there were cuts inside the model.
        stretch_layers: the first layer of every stretch but the first.
        uncut_attended: ``[B]``, real tokens of every sample, had nothing been cut in this pass.
        images_of: the images of every sample.
        costs: what the FLOPs are computed from.
    """

    visual_tokens: tuple[int, ...]
    stretches: Sequence[Stretch]
    stretch_layers: tuple[int, ...]
    uncut_attended: Tensor
    images_of: tuple[tuple[ImageTrace, ...], ...]
    costs: ModelCosts

    @property
    def source_length(self) -> int:
        """Columns of the given ``input_ids``."""
        return self.stretches[0].cut.source_length

    @property
    def columns(self) -> Tensor:
        """``[B, L]``: for every column entering the language model the column of ``input_ids``, -1 in padding."""
        return self.stretches[0].cut.columns()

    @property
    def output_columns(self) -> Tensor:
        """``[B, K]``: the same for the columns that leave the language model, those of the logits."""
        return self.stretches[-1].cut.columns()

    @property
    def attention_mask(self) -> Tensor:
        """``[B, past + L]``, 1 for the real tokens entering the language model."""
        return self.stretches[0].attended

    def patches_at_the_end(self, image: int) -> Tensor:
        """The patches of an image that the last decoder layer still sees, into its ``grid`` (row-major), sorted.

        Args:
            image: number of the image in :attr:`Trace.images`.

        Returns:
            int64 ``[K]``; tokens that are no patches (CLS, separators) are left out.
        """
        first, last = self.stretches[0], self.stretches[-1]
        row = int((first.image == image).any(dim=1).nonzero()[0, 0])
        entered = first.cut.columns()[row][first.image[row] == image]
        left = last.cut.columns()[row][last.image[row] == image]
        number = image - sum(len(images) for images in self.images_of[:row])
        trace = self.images_of[row][number]
        placeholders = trace.placeholder_kept.nonzero()[:, 0].to(entered.device)[torch.isin(entered, left)]
        tokens = trace.layout.tokens.to(placeholders.device)[placeholders]
        return tokens[tokens >= 0].sort().values

    @property
    def recycled_tokens(self) -> tuple[int, ...]:
        """Per sample, the tokens that are means of cut ones (SparseVLM), over all cuts inside the language model."""
        counts = [0] * len(self.images_of)
        for stretch in self.stretches:
            for merged in stretch.recycled:
                counts[merged.row] += len(merged.places)
        return tuple(counts)

    @cached_property
    def layers_of_stretch(self) -> list[int]:
        """How many decoder layers each stretch has."""
        bounds = [0, *self.stretch_layers[: len(self.stretches) - 1], self.costs.decoder_layers]
        return [after - before for before, after in pairwise(bounds)]

    @cached_property
    def visual_tokens_mean(self) -> tuple[float, ...]:
        """Visual tokens averaged over the decoder layers."""
        per_stretch = [(stretch.image >= 0).sum(dim=1).tolist() for stretch in self.stretches]
        return self._layer_mean(per_stretch)

    @cached_property
    def kv_entries_per_stretch(self) -> list[list[int]]:
        """Key/value entries per decoder layer after this pass, padding not counted, for stretch and sample."""
        return [stretch.attended.long().sum(dim=1).tolist() for stretch in self.stretches]

    @cached_property
    def kv_entries(self) -> tuple[float, ...]:
        """Key/value entries after this pass, averaged over the decoder layers, padding not counted."""
        return self._layer_mean(self.kv_entries_per_stretch)

    def _layer_mean(self, per_stretch: list[list[int]]) -> tuple[float, ...]:
        layers = self.layers_of_stretch
        return tuple(
            sum(count * tokens for count, tokens in zip(layers, sample, strict=True)) / sum(layers)
            for sample in zip(*per_stretch, strict=True)
        )

    @cached_property
    def flops(self) -> tuple[Flops, ...]:
        """FLOPs of tower, projector and prefill for every sample; the formulas are in ``counting.py``."""
        return tuple(
            Flops(
                tower=sum(
                    self.costs.tower(
                        tile.tokens_embedded,
                        tile.tokens_into_layer,
                        tile.tokens_through_layer,
                        tile.pairs_in_layer,
                    )
                    for image in images
                    for tile in image.tiles
                ),
                projector=sum(self.costs.projector(image.projected_now) for image in images),
                prefill=sum(
                    self.costs.decoder(layers, tokens)
                    for layers, tokens in zip(self.layers_of_stretch, per_stretch, strict=True)
                ),
            )
            for images, per_stretch in zip(self.images_of, zip(*self.kv_entries_per_stretch, strict=True), strict=True)
        )

    @cached_property
    def uncut_flops(self) -> tuple[Flops, ...]:
        """What the same pass costs in the uncut model, which runs every layer of the tower."""
        return tuple(
            Flops(
                tower=sum(
                    self.costs.uncut_tower(tile.tokens, tile.uncut_pairs) for image in images for tile in image.tiles
                ),
                projector=sum(self.costs.projector(image.projected) for image in images),
                prefill=self.costs.decoder(self.costs.decoder_layers, tokens),
            )
            for images, tokens in zip(self.images_of, self.uncut_attended.tolist(), strict=True)
        )


@dataclass(frozen=True)
class Trace:
    """The last forward pass that saw an image or began a new sequence.

    Attributes:
        images: one entry per image, in the order the images were given; then the videos.
        sequence: the prompts, or ``None`` before any pass through the language model.
    """

    images: list[ImageTrace] = field(default_factory=list)
    sequence: SequenceTrace | None = None
