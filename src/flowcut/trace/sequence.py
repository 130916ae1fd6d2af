"""What happened to the prompts of a forward pass: which columns stayed, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..algorithm.columns import ColumnCut
from ..algorithm.positions import shifted_positions
from ..methods.views import Recycled
from ..models.costs import Flops, ModelCosts
from .cache_state import CacheState
from .images import ImageTrace


@dataclass(frozen=True)
class Stretch:
    """The columns that a run of decoder layers sees.

    Attributes:
        before: the state of these layers' cache before this pass.
        cut: which columns of the prompt they are.
        new_mask: ``[B, S]``, 1 for real tokens.
        positions: ``[B, S]``, position ids, or ``[axes, B, S]`` where they are places in a picture.
        removed: ``[B]``, columns that each sample lost in this pass.
        recycled: which tokens of the stretch before were merged into columns of this one.
        image: ``[B, S]``, image of each visual token, -1 for text.
        full: whether it is known that there is no padding among them and those cached before.
    """

    before: CacheState
    cut: ColumnCut
    new_mask: Tensor
    positions: Tensor
    removed: Tensor
    image: Tensor
    recycled: tuple[Recycled, ...] = ()
    full: bool = False

    @cached_property
    def attended(self) -> Tensor:
        """``[B, cached + S]``, the attention mask of these layers."""
        if not self.before.cached:
            return self.new_mask
        return torch.cat([self.before.attention_mask.to(self.new_mask), self.new_mask], dim=1)

    def needed_mask(self, in_order: bool) -> Tensor | None:
        """The same, or ``None`` where there is no padding to be masked.

        Args:
            in_order: whether the positions have no gaps. Where they have and there is no mask, transformers takes the
                gaps for seams between samples.
        """
        return None if self.full and in_order else self.attended

    @property
    def after(self) -> CacheState:
        """The state of these layers' cache after this pass."""
        uncut_length = self.before.uncut_length + self.cut.source_length
        removed = self.before.removed + self.removed
        return CacheState(self.attended, removed, uncut_length, self.attended.shape[1], self.full)

    def last_before(self, length: int) -> Tensor:
        """``[B]``: the last real column of every sample that comes from the prompt's first ``length`` columns."""
        if self.full and length >= self.cut.source_length:
            return self.removed.new_full(self.removed.shape, self.new_mask.shape[1] - 1)
        columns = self.cut.columns().masked_fill(self.new_mask == 0, -1)
        return columns.masked_fill(columns >= length, -1).argmax(dim=1)

    def ranked_images(self) -> Tensor:
        """:attr:`image`, without those in padding, whose pictures no text is there to rank."""
        return self.image if self.full else self.image.masked_fill(self.new_mask == 0, -1)

    def next(
        self, before: CacheState, keep: Tensor, chosen: ColumnCut, compact: bool, recycled: tuple[Recycled, ...]
    ) -> Stretch:
        """The stretch behind a cut that keeps the columns ``keep`` ``[B, S]`` of this one, as ``chosen`` plans it."""
        dropped = ~keep
        # Both are one object where no pass cut before this one.
        since = None if before is self.before else before.removed - self.before.removed
        full = self.full and chosen.even
        left = chosen.index.shape[1]
        return Stretch(
            before=before,
            cut=self.cut.then(chosen),
            new_mask=self.new_mask[:, :left] if full else chosen.take(self.new_mask),
            positions=shifted_positions(self.positions, chosen, since, dropped, compact),
            removed=self.removed + (keep.shape[1] - left if full else dropped.sum(dim=1)),
            image=chosen.take(self.image, -1),
            recycled=recycled,
            full=full and before.full,
        )


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
        """``[B, K]``: the same for the columns that leave the language model; of logits with ``outputs="kept"``."""
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
    def bounds_of_stretch(self) -> list[tuple[int, int]]:
        """The first decoder layer of each stretch, and the one behind its last."""
        return list(pairwise([0, *self.stretch_layers[: len(self.stretches) - 1], len(self.costs.decoder)]))

    @cached_property
    def layers_of_stretch(self) -> list[int]:
        """How many decoder layers each stretch has."""
        return [behind - first for first, behind in self.bounds_of_stretch]

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
        """FLOPs of tower, projector and prefill for every sample; the formulas are in ``models/costs.py``."""
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
                )
                + sum(image.counted_flops for image in images),
                projector=sum(self.costs.projector(image.projected_now) for image in images),
                prefill=sum(
                    self.costs.prefill(*bounds, tokens)
                    for bounds, tokens in zip(self.bounds_of_stretch, per_stretch, strict=True)
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
                )
                + sum(image.counted_flops for image in images),
                projector=sum(self.costs.projector(image.projected) for image in images),
                prefill=self.costs.prefill(0, len(self.costs.decoder), tokens),
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
