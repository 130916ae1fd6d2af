"""A step behind a cut inside the language model: mask, rotary embedding and positions for the layers behind every cut.

Nothing is chosen in a step. Where the layers count different positions, those of all of them go through the model's
rotary embedding together, in the one call that the model makes anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from ...models.base import ModelParts
from ...trace import CacheState
from ..forward_pass import at_work
from .decoder_pass import layer_kind, mask_for, rotary_of


class DecoderStep:
    """One pass of tokens behind a cut prompt, without pictures among them.

    Args:
        parts: the model.
        layers: the decoder layers behind which it was cut.
        states: of the cache behind this pass, for every stretch of layers.
        positions: ``[stretches, B, S]`` where every stretch counts its own, else ``[B, S]`` or ``[axes, B, S]``.
        apart: whether every stretch counts its own.
        cache: the cache.
    """

    def __init__(
        self,
        parts: ModelParts,
        layers: tuple[int, ...],
        states: tuple[CacheState, ...],
        positions: Tensor,
        apart: bool,
        cache: Cache | None,
    ) -> None:
        self.parts = parts
        self.layers = layers
        self.states = states
        self.positions = positions
        self.apart = apart
        self.cache = cache
        self._embeddings: list[tuple[Any, list[Any]]] = []
        self._arguments: dict[tuple[int, str, bool], dict[str, Any]] = {}

    def embed(self, rotary: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's call of its rotary embedding, for the positions of all stretches at once.

        Returns:
            What the model asked for: the embedding of the first stretch.
        """
        stretches, rows, _ = self.positions.shape
        together = rotary(hidden, *args, position_ids=self.positions.flatten(0, 1), **kwargs)
        apart = [
            tuple(part.unflatten(0, (stretches, rows))[number] for part in together) for number in range(stretches)
        ]
        self._embeddings.append((apart[0], apart))
        return apart[0]

    def arguments(self, layer: int, hidden: Tensor, embeddings: Any) -> dict[str, Any]:
        """What the layer must be called with instead, where it lies behind a cut.

        Args:
            layer: its index.
            hidden: ``[B, S, width]``, what goes into it.
            embeddings: the rotary embedding that the model hands to it, if any; anything else that is not ``None``
                where the model was not called yet.
        """
        number = bisect_left(self.layers, layer)
        kind = layer_kind(self.parts.language_model.config, layer)
        turned = embeddings is not None
        if (number, kind, turned) not in self._arguments:
            self._arguments[number, kind, turned] = self._made(number, kind, layer, hidden, embeddings)
        return self._arguments[number, kind, turned]

    def _made(self, number: int, kind: str, layer: int, hidden: Tensor, embeddings: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"attention_mask": self._mask(number, kind, layer, hidden)}
        if self.apart:
            made["position_ids"] = self.positions[number]
            known = next((apart for first, apart in self._embeddings if first is embeddings), None)
            if known is not None:
                made["position_embeddings"] = known[number]
            elif embeddings is not None:
                model = self.parts.language_model
                made["position_embeddings"] = rotary_of(model, hidden, self.positions[number], kind)
        return made

    def _mask(self, number: int, kind: str, layer: int, hidden: Tensor) -> Any:
        """The mask of a layer. transformers' own, but for one new token at a time, which may look at all others."""
        config: Any = self.parts.language_model.config
        state = self.states[number]
        plain = kind == "full_attention" and getattr(config, "is_causal", True)
        known = ALL_MASK_ATTENTION_FUNCTIONS.get(config._attn_implementation) is sdpa_mask
        if self.cache is None or hidden.shape[1] > 1 or not plain or not known:
            return mask_for(self.parts.language_model, kind, layer, hidden, state.needed_mask, self.cache)
        length = self.cache.get_mask_sizes(1, layer)[0]
        if not state.full:
            mask = state.attention_mask.to(hidden.device).bool()
            ahead = length - state.cached
            return (nn.functional.pad(mask, (0, ahead)) if ahead else mask)[:, None, None]
        if length == state.cached:
            return None
        return (torch.arange(length, device=hidden.device) < state.cached).expand(len(hidden), 1, 1, length)


def embed_stretches(original: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The forward of the language model's rotary embedding; in a step, for all stretches at once."""
    current = at_work()
    step = None if current is None else current.decoder
    if not isinstance(step, DecoderStep) or not step.apart:
        return original(hidden, *args, **kwargs)
    return step.embed(original, hidden, *(args if "position_ids" in kwargs else args[1:]), **without_positions(kwargs))


def without_positions(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a rotary embedding but its positions."""
    return {name: value for name, value in kwargs.items() if name != "position_ids"}
