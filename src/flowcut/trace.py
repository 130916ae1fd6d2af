"""What happened in the last forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .counting import Flops, ModelCosts


@dataclass(frozen=True)
class ImageTrace:
    """One image on its way through the vision tower.

    Attributes:
        kept: indices of the patches that left the tower, into its patch grid (row-major), sorted; int64 ``[K]``.
        grid: the patch grid, (height, width).
        tokens_after_layer: tokens alive after every vision layer, prefix tokens such as CLS included; the layers
            behind ``layers_run`` repeat the last count.
        layers_run: vision layers that ran; those behind the feature layer do not.
        kept_after_layer: the patches alive after each layer that cut, by layer.
        visible_prefix: prefix tokens (CLS) that the language model sees in front of the patches.
    """

    kept: Tensor
    grid: tuple[int, int]
    tokens_after_layer: list[int]
    layers_run: int
    kept_after_layer: dict[int, Tensor]
    visible_prefix: int

    @property
    def patches(self) -> int:
        """Patches of the uncut image."""
        return self.grid[0] * self.grid[1]

    @property
    def placeholders(self) -> int:
        """Visual tokens of the uncut image, as they are counted in the prompt."""
        return self.visible_prefix + self.patches

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the image that enter the language model."""
        return self.visible_prefix + len(self.kept)

    @property
    def whole(self) -> bool:
        """Whether nothing was cut (the budget covers the whole image)."""
        return len(self.kept) == self.patches

    @property
    def tokens_into_layer(self) -> list[int]:
        """Tokens entering every vision layer that ran."""
        alive_at_first = self.patches + self.tokens_after_layer[-1] - len(self.kept)
        return [alive_at_first, *self.tokens_after_layer][: self.layers_run]

    def kept_placeholders(self) -> Tensor:
        """Boolean ``[placeholders]``: which of the prompt's placeholders of this image stay."""
        mask = torch.zeros(self.placeholders, dtype=torch.bool, device=self.kept.device)
        mask[: self.visible_prefix] = True
        mask[self.kept + self.visible_prefix] = True
        return mask


@dataclass(frozen=True)
class SequenceTrace:
    """The prompts of one forward pass in front of the language model, one entry per sample.

    Attributes:
        visual_tokens: visual tokens entering the language model.
        columns: ``[B, L]``, for every column of the shortened batch the column of the given ``input_ids``
            it came from, -1 where it is padding.
        attention_mask: ``[B, past + L]``, 1 for real tokens.
        source_length: columns of the given ``input_ids``.
        uncut_attended: ``[B]``, real tokens of every sample, had nothing been cut in this pass.
        images_of: the images of every sample.
        costs: what the FLOPs are computed from.
    """

    visual_tokens: tuple[int, ...]
    columns: Tensor
    attention_mask: Tensor
    source_length: int
    uncut_attended: Tensor
    images_of: tuple[tuple[ImageTrace, ...], ...]
    costs: ModelCosts

    @property
    def visual_tokens_mean(self) -> tuple[float, ...]:
        """Visual tokens averaged over the decoder layers (all layers see the same until a method cuts there)."""
        return tuple(float(tokens) for tokens in self.visual_tokens)

    @cached_property
    def kv_entries(self) -> tuple[int, ...]:
        """Key/value entries per decoder layer after this pass, padding not counted."""
        return tuple(int(row) for row in self.attention_mask.long().sum(dim=-1).tolist())

    @cached_property
    def flops(self) -> tuple[Flops, ...]:
        """FLOPs of tower, projector and prefill for every sample; the formulas are in ``counting.py``."""
        return tuple(
            Flops(
                tower=sum(
                    self.costs.tower(
                        image.patches, image.tokens_into_layer, image.tokens_after_layer[: image.layers_run]
                    )
                    for image in images
                ),
                projector=sum(self.costs.projector(image.visual_tokens) for image in images),
                prefill=self.costs.prefill(tokens),
            )
            for images, tokens in zip(self.images_of, self.kv_entries, strict=True)
        )

    @cached_property
    def uncut_flops(self) -> tuple[Flops, ...]:
        """What the same pass costs in the uncut model."""
        return tuple(
            Flops(
                tower=sum(self.costs.uncut_tower(image.patches) for image in images),
                projector=sum(self.costs.projector(image.placeholders) for image in images),
                prefill=self.costs.prefill(tokens),
            )
            for images, tokens in zip(self.images_of, self.uncut_attended.tolist(), strict=True)
        )


@dataclass(frozen=True)
class Trace:
    """The last forward pass that saw an image or began a new sequence.

    Attributes:
        images: one entry per image, in the order the images were given.
        sequence: the prompts, or ``None`` before any pass through the language model.
    """

    images: list[ImageTrace] = field(default_factory=list)
    sequence: SequenceTrace | None = None
