"""FLOPs, counted analytically; one multiply-add is two FLOPs, as in ``torch.utils.flop_counter``.

* linear maps: ``2 * in * out`` for each token and each ``nn.Linear``; of experts, those that a token takes;
* attention of n queries on n keys: ``4 * n * n * width`` (scores and weighted sum; causal masks are not halved);
* linear attention (gated delta rule): see :func:`recurrent_flops`;
* in a vision layer that cuts, the output projection and the MLP work on the tokens that go on (in Qwen's towers the
  MLP alone); attention is counted for all queries, though only those tokens' are computed where there is no padding;
* padding is not counted, neither that of prompts nor that of tiles which keep different numbers of patches;
* attention within frames or windows (Qwen's towers): n * n is the sum over them;
* patch embedding: ``2 * in_channels * patch^2 * width`` for each patch;
* a tower's pooling head (SigLIP, ViT), which runs whether or not the model reads it: see :func:`pooler_cost`;
* a vision tower that is not taken apart, with its projector: counted by torch, see ``stages/tower/whole.py``.

Decode steps are not counted; ``docs/how-a-pass-works.md`` says what one costs. Norms, activations, resized
position embeddings, the language model's head and the scoring itself (the global token's row, below 0.1%) are not
counted either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def linear_flops(module: nn.Module, experts: int = 1) -> int:
    """FLOPs for one token through every linear map in ``module``.

    Args:
        module: any module. Convolutions count once for each position of their output.
        experts: how many experts a token takes, of those whose weights lie in one tensor ``[experts, out, in]``.
    """
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            # Quantised weights have another shape.
            total += 2 * part.in_features * part.out_features
            continue
        for name, weight in part.named_parameters(recurse=False):
            if isinstance(part, (nn.Conv1d, nn.Conv2d)):
                total += 2 * weight.numel() if name == "weight" else 0
            elif weight.dim() == 3:
                total += 2 * weight.numel() // len(weight) * experts
            elif weight.dim() == 2 and name.endswith("weight") and not isinstance(part, nn.Embedding):
                total += 2 * weight.numel()
    return total


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs.

    Attributes:
        linear: FLOPs of its linear maps for one token.
        width: ``4 * width`` FLOPs for every pair of tokens in its attention; 0 where it does not attend.
        recurrent: FLOPs of its linear attention for one token, padded to whole chunks; 0 where it has none.
    """

    linear: int
    width: int
    recurrent: int = 0

    def of(self, tokens: int) -> int:
        """FLOPs for so many tokens."""
        padded = -(-tokens // CHUNK) * CHUNK
        return tokens * self.linear + 4 * tokens * tokens * self.width + padded * self.recurrent


CHUNK = 64
"""Tokens in a chunk of linear attention."""

EXPERTS = ("num_experts_per_tok", "moe_topk", "moe_k")
"""Names under which configs hold how many experts a token takes."""


def layer_cost(layer: nn.Module, config: Any) -> LayerCost:
    """What a decoder layer costs, from its modules and the language model's config."""
    taken = next((int(getattr(config, name)) for name in EXPERTS if getattr(config, name, None)), 1)
    linear = linear_flops(layer, taken)
    attention: Any = getattr(layer, "self_attn", None)
    if attention is None:
        return LayerCost(linear, 0, recurrent_flops(getattr(layer, "linear_attn", None)))
    own: Any = getattr(attention, "config", config)
    heads = own.num_attention_heads
    size = getattr(attention, "head_dim", None) or getattr(own, "head_dim", None) or own.hidden_size // heads
    keys = getattr(attention, "qk_head_dim", None) or size
    values = getattr(attention, "v_head_dim", None) or size
    return LayerCost(linear, heads * (keys + values) // 2)


def recurrent_flops(module: Any) -> int:
    """FLOPs of a gated delta rule for one token, in chunks of C; 0 where ``module`` is none.

    For each head with keys of size k and values of size v: three products of a token with the tokens of its chunk and
    three with a k x v state (``4 C k + 2 C v + 6 k v``); the triangular systems in each chunk are not counted.
    """
    if module is None or not hasattr(module, "head_k_dim"):
        return 0
    keys, values = module.head_k_dim, module.head_v_dim
    each: int = 4 * CHUNK * keys + 2 * CHUNK * values + 6 * keys * values
    return int(module.num_v_heads) * each


def pooler_cost(pooler: nn.Module | None) -> tuple[int, int]:
    """FLOPs of a tower's pooling head: for every token that leaves the last layer, and once.

    An attention pooling head maps every token to a key and a value of size d, which one learned query looks at
    (``4 d d + 4 d``); its other maps work on one vector. Any other head works on one token alone.
    """
    if pooler is None:
        return 0, 0
    attention = next((part for part in pooler.modules() if isinstance(part, nn.MultiheadAttention)), None)
    if attention is None:
        return 0, linear_flops(pooler)
    width = attention.embed_dim
    each = 4 * width * width
    return each + 4 * width, linear_flops(pooler) - each


@dataclass(frozen=True)
class ModelCosts:
    """The numbers that the formulas need, taken from one model."""

    patch_embedding: int
    tower_prefix: int
    tower_layers: int
    tower_inner_linear: int
    tower_outer_linear: int
    tower_width: int
    in_front: Callable[[int], int] | None
    pooler_each: int
    pooler_once: int
    projector_linear: int
    decoder: tuple[LayerCost, ...]

    @classmethod
    def of(cls, parts: ModelParts) -> ModelCosts:
        """Read the costs off a model's modules and configs."""
        tower: Any = parts.tower.config
        text: Any = parts.language_model.config
        packing = parts.tower.packing
        whole = not parts.tower.layers
        width = 0 if whole else packing.width if packing else tower.hidden_size
        values = 0 if whole else packing.values if packing else tower.num_channels * parts.tower.patch_size**2
        pooler_each, pooler_once = pooler_cost(parts.tower.pooler)
        mergers = [parts.projector, *(packing.deepstack if packing else ())]
        projection = 0 if packing or whole else linear_flops(parts.tower.projections[0])
        return cls(
            patch_embedding=2 * values * width,
            tower_prefix=parts.tower.prefix,
            tower_layers=len(parts.tower.layers),
            tower_inner_linear=0 if whole else linear_flops(parts.tower.attentions[0]) - projection,
            tower_outer_linear=0 if whole else linear_flops(parts.tower.mlps[0]) + projection,
            tower_width=width,
            in_front=packing.flops_in_front if packing else None,
            pooler_each=pooler_each,
            pooler_once=pooler_once,
            projector_linear=sum(linear_flops(merger) for merger in mergers)
            if parts.projector_flops is None
            else parts.projector_flops,
            decoder=tuple(layer_cost(layer, text) for layer in parts.decoder_layers),
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
        pooled = self.pooler_each * tokens_after_layer[-1] + self.pooler_once if len(tokens_after_layer) else 0
        return (
            (patches * self.patch_embedding if self.in_front is None else self.in_front(patches))
            + pooled
            + sum(
                into * self.tower_inner_linear + after * self.tower_outer_linear + 4 * pair * self.tower_width
                for into, after, pair in zip(tokens_into_layer, tokens_after_layer, pairs, strict=True)
            )
        )

    def uncut_tower(self, patches: int, pairs: Sequence[int] | None = None) -> int:
        """One image through every layer of the uncut tower; ``pairs`` as in :meth:`tower`."""
        tokens = [self.tower_prefix + patches] * self.tower_layers
        return self.tower(patches, tokens, tokens, pairs)

    def projector(self, tokens: int) -> int:
        """``tokens`` visual tokens through the projector."""
        return tokens * self.projector_linear

    def prefill(self, first: int, behind: int, tokens: int) -> int:
        """A prompt of ``tokens`` tokens through the decoder layers from ``first`` to the one before ``behind``."""
        return sum(layer.of(tokens) for layer in self.decoder[first:behind])
