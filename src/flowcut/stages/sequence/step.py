"""A step on a cut cache: tokens behind a prompt whose cut tokens left long ago, and no pictures among them.

The caller's mask and positions count uncut columns. Nothing is dropped here, so all there is to do is to hand on the
mask of the columns that are cached and the position that belongs to each new token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.base import Method
from ...models.base import ModelParts
from ...trace import CacheState
from ..decoder.decoder_step import DecoderStep
from .cache_argument import CACHE, cache_in
from .places import places_of
from .shortening import TOKENS, two_dimensional_mask

STEP = "flowcut_step"
"""Keyword argument of a call that counts what is left already; its value is what every decoder layer takes instead."""


class Steps:
    """Makes calls count what is left.

    Args:
        parts: the model.
        method: what cut.
        layers: the decoder layers behind which it cut.
    """

    def __init__(self, parts: ModelParts, method: Method, layers: tuple[int, ...]) -> None:
        self.parts = parts
        self.layers = layers
        self.compact = method.positions == "compact" and not parts.grid_positions

    def take(
        self, call: dict[str, Any], states: tuple[CacheState, ...]
    ) -> tuple[tuple[CacheState, ...], DecoderStep | None]:
        """Make a call count what is left, in place.

        Args:
            call: arguments of the base model's forward.
            states: of its cache, for every stretch of layers.

        Returns:
            The states behind the call, and what the layers behind cuts inside the language model need to know.
        """
        tokens = next(call[name] for name in TOKENS if call.get(name) is not None)
        columns = tokens.shape[1]
        mask = two_dimensional_mask(call)
        new = None if mask is None else mask[:, -columns:]
        if new is not None and states[0].full and bool(new.all()):
            # The model would ask the same, and needs no mask now.
            new = None
        after = tuple(state.followed_by(columns, new) for state in states)
        positions = self._positions(call, states, tokens, new is not None)
        apart = bool(self.layers) and self.compact
        call["attention_mask"] = after[0].needed_mask
        call["position_ids"] = positions[0] if apart else positions
        step = DecoderStep(self.parts, self.layers, after, positions, apart, cache_in(call)) if self.layers else None
        return after, step

    def _positions(self, call: dict[str, Any], states: tuple[CacheState, ...], tokens: Tensor, padding: bool) -> Tensor:
        """Positions of the tokens, ``[B, S]`` or ``[axes, B, S]``; ``[stretches, B, S]`` where those count apart."""
        before, shape = states[0], tokens.shape[:2]
        if self.parts.grid_positions:
            return places_of(self.parts.base, call, before, shape, tokens.device)
        positions: Tensor | None = call.get("position_ids")
        if positions is None:
            first = before.uncut_length + self.parts.first_position
            positions = torch.arange(first, first + shape[1], device=tokens.device)[None]
        if not self.compact:
            return positions.expand(shape)
        removed = torch.stack([state.removed for state in states]) if self.layers else before.removed
        positions = positions - removed[..., None]
        # Padding may have any position, which may lie in front of what was removed.
        return positions.clamp(min=0) if padding else positions

    def prepared(
        self, make_masks: Callable[..., Any], inputs: dict[str, Any], states: tuple[CacheState, ...]
    ) -> tuple[CacheState, ...]:
        """Make a call of ``generate()`` on a static cache count what is left, in place, masks included.

        transformers makes the masks in front of the model, so that the model can be compiled: all that changes from
        step to step are values. So everything else that a step needs is made here, too, and goes with the call.

        Args:
            make_masks: transformers' or the model's own function for it.
            inputs: arguments of the model's forward.
            states: of its cache.

        Returns:
            The states behind the call.
        """
        after, step = self.take(inputs, states)
        tokens = next(inputs[name] for name in TOKENS if inputs.get(name) is not None)
        dtype = self.parts.base.get_input_embeddings().weight.dtype  # type: ignore[operator]
        hidden = torch.empty(*tokens.shape[:2], 0, dtype=dtype, device=tokens.device)
        given = {"config": self.parts.top.config, "inputs_embeds": hidden, "attention_mask": inputs["attention_mask"]}
        inputs["attention_mask"] = in_memory(make_masks(**given, position_ids=None, **{CACHE: cache_in(inputs)}))
        inputs[STEP] = {}
        if step is not None:
            for layer in range(self.layers[0] + 1, len(self.parts.decoder_layers)):
                inputs[STEP][layer] = in_memory(step.arguments(layer, hidden, ()))
        return after


def in_memory(made: Any) -> Any:
    """A mask or a mapping with masks, these without gaps in memory, so that a compiled model always gets the same."""
    if isinstance(made, dict):
        return {name: in_memory(value) for name, value in made.items()}
    return made.contiguous() if isinstance(made, Tensor) else made
