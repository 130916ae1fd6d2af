"""FLOPs, counted analytically; one multiply-add is two FLOPs, as in ``torch.utils.flop_counter``.

* linear maps: ``2 * in * out`` for each token and each ``nn.Linear``;
* attention of n queries on n keys: ``4 * n * n * width`` (scores and weighted sum; causal masks are not halved);
* in a vision layer that cuts, the output projection and the MLP work on the tokens that go on (in Qwen's towers the
  MLP alone); attention is counted for all queries, though only those tokens' are computed where there is no padding;
* attention within frames or windows (Qwen's towers): n * n is the sum over them;
* patch embedding: ``2 * in_channels * patch^2 * width`` for each patch.

Decode steps are not counted; ``docs/how-a-pass-works.md`` says what one costs. Norms, activations, the language model's
head and the scoring itself (the global token's row, below 0.1%) are not counted either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .base import ModelParts


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sample's vision tower, projector and language-model prefill."""

    tower: int
    projector: int
    prefill: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.tower + self.projector + self.prefill


def linear_flops(module: nn.Module) -> int:
    """FLOPs for one token through every ``nn.Linear`` in ``module``."""
    return sum(2 * part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))


@dataclass(frozen=True)
class ModelCosts:
    """The numbers that the formulas need, taken from one model."""

    patch_embedding: int
    tower_prefix: int
    tower_layers: int
    tower_inner_linear: int
    tower_outer_linear: int
    tower_width: int
    projector_linear: int
    decoder_layers: int
    decoder_linear: int
    decoder_width: int

    @classmethod
    def of(cls, parts: ModelParts) -> ModelCosts:
        """Read the costs off a model's modules and configs."""
        tower: Any = parts.tower.config
        text: Any = parts.language_model.config
        heads = text.num_attention_heads
        head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
        packing = parts.tower.packing
        whole = not parts.tower.layers
        width = 0 if whole else packing.width if packing else tower.hidden_size
        values = 0 if whole else packing.values if packing else tower.num_channels * parts.tower.patch_size**2
        mergers = [parts.projector, *(packing.deepstack if packing else ())]
        projection = 0 if packing or whole else linear_flops(parts.tower.projections[0])
        return cls(
            patch_embedding=2 * values * width,
            tower_prefix=parts.tower.prefix,
            tower_layers=len(parts.tower.layers),
            tower_inner_linear=0 if whole else linear_flops(parts.tower.attentions[0]) - projection,
            tower_outer_linear=0 if whole else linear_flops(parts.tower.mlps[0]) + projection,
            tower_width=width,
            projector_linear=sum(linear_flops(merger) for merger in mergers),
            decoder_layers=len(parts.decoder_layers),
            decoder_linear=linear_flops(parts.decoder_layers[0]),
            decoder_width=heads * head_size,
        )

    def tower(
        self,
        patches: int,
        tokens_into_layer: Sequence[int],
        tokens_after_layer: Sequence[int],
        pairs: Sequence[int] | None = None,
    ) -> int:
        """One image through the tower.

        Args:
            patches: patches of the image.
            tokens_into_layer: tokens entering each layer that runs.
            tokens_after_layer: tokens leaving it.
            pairs: (query, key) pairs in its attention; by default every token attends to all.
        """
        if pairs is None:
            pairs = [into * into for into in tokens_into_layer]
        return patches * self.patch_embedding + sum(
            into * self.tower_inner_linear + after * self.tower_outer_linear + 4 * pair * self.tower_width
            for into, after, pair in zip(tokens_into_layer, tokens_after_layer, pairs, strict=True)
        )

    def uncut_tower(self, patches: int, pairs: Sequence[int] | None = None) -> int:
        """One image through every layer of the uncut tower; ``pairs`` as in :meth:`tower`."""
        tokens = [self.tower_prefix + patches] * self.tower_layers
        return self.tower(patches, tokens, tokens, pairs)

    def projector(self, tokens: int) -> int:
        """``tokens`` visual tokens through the projector."""
        return tokens * self.projector_linear

    def decoder(self, layers: int, tokens: int) -> int:
        """A prompt of ``tokens`` tokens through ``layers`` decoder layers."""
        return layers * layer_flops(tokens, self.decoder_linear, self.decoder_width)


def layer_flops(tokens: int, linear: int, width: int) -> int:
    """Linear maps and attention on ``tokens`` tokens."""
    return tokens * linear + 4 * tokens * tokens * width
