"""One batch of prompts on its way through the language model: the columns each run of layers sees, and what is cut."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

from ...algorithm.columns import ColumnCut, all_columns, keep_columns
from ...errors import NotAppliedError
from ...methods.base import Method
from ...methods.policies import DecoderPolicy
from ...methods.views import DecoderView, Recycled
from ...models.base import ModelParts
from ...trace import CacheState, Stretch
from ..forward_pass import PART_KEYWORD, running
from ..sequence.cache_argument import CACHE
from ..sequence.reservation import Reservation


class Ranked(Exception):
    """Ends a call of an attention module that served the ranking alone."""


class DecoderPass:
    """One forward pass through the language model."""

    def __init__(
        self,
        parts: ModelParts,
        method: Method,
        first: Stretch,
        states: tuple[CacheState, ...],
        targets: tuple[int, ...],
        prompt_length: int,
        cache: Cache | None,
        reservation: Reservation,
    ) -> None:
        self.parts = parts
        self.layers = method.decoder_layers(parts.second_cut)
        self.compact = method.positions == "compact"
        self.policy: DecoderPolicy | None = method.decoder_policy() if targets else None
        self.targets = targets
        self.prompt_length = prompt_length
        self.cache = cache
        self.reservation = reservation
        self.states = states
        self.stretches = [first]
        self.choices: dict[int, ColumnCut] = {}
        self.recycled: dict[int, tuple[Recycled, ...]] = {}
        self._selected: dict[int, Tensor | None] = {}
        self._entered = False
        self._ranking = False
        self._arguments: dict[tuple[int, str], dict[str, Any]] = {}
        reservation.shorten(cache, 0, self._layers_of(0), first)

    def _layers_of(self, number: int) -> range:
        """The layers of a stretch."""
        bounds = [0, *(layer + 1 for layer in self.layers), len(self.parts.decoder_layers)]
        return range(bounds[number], bounds[number + 1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Let the policy choose, from q, k, v of a layer that cuts."""
        if layer in self._selected:
            return mask
        stretch = self.stretches[self.layers.index(layer)]
        keep = None
        if self.policy is not None:
            new = self._new_ones(layer, stretch, query, key)
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                keep = self.policy.select(
                    DecoderView(
                        layer=layer,
                        query=query,
                        key=key[:, :, new],
                        value=value[:, :, new],
                        scaling=scaling,
                        image=stretch.ranked_images().to(query.device),
                        real=None if stretch.full else stretch.new_mask.to(query.device).bool(),
                        last=stretch.last_before(self.prompt_length).to(query.device),
                        source=stretch.cut.columns().to(query.device),
                        targets=self.targets,
                    )
                )
        self._selected[layer] = keep
        if self._ranking:
            raise Ranked
        return mask

    def _new_ones(self, layer: int, stretch: Stretch, query: Tensor, key: Tensor) -> slice:
        """Where the keys of this pass stand among those that a layer's cache hands out."""
        columns = query.shape[2]
        own = None if self.cache is None or layer >= len(self.cache.layers) else self.cache.layers[layer]
        if isinstance(own, StaticLayer) and key.shape[2] == own.max_cache_len:
            # It hands out all that it reserved.
            return slice(stretch.before.cached, stretch.before.cached + columns)
        return slice(key.shape[2] - columns, None)

    def enter(self, hidden: Tensor) -> None:
        """Show the policy what the first decoder layer gets."""
        if self.policy is not None and not self._entered:
            self._entered = True
            first = self.stretches[0]
            last = first.last_before(self.prompt_length).to(hidden.device)
            with torch.no_grad():
                self.policy.enter(hidden, first.ranked_images().to(hidden.device), last)

    def _go_on(self, layer: int, keep: Tensor | None, hidden: Tensor) -> None:
        """Begin the stretch behind ``layer`` with the columns ``keep`` ``[B, S]``, or with all."""
        number = self.layers.index(layer)
        stretch = self.stretches[number]
        if keep is not None and self.policy is not None:
            with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
                self.recycled[layer] = tuple(self.policy.recycle(layer, hidden))
            for merged in self.recycled[layer]:
                keep[merged.row, merged.places] = True
        before = self.states[number + 1] if len(self.states) > number + 1 else self.states[0]
        if keep is None:
            keep = torch.ones_like(stretch.cut.real)
            chosen = all_columns(keep)
        else:
            chosen = self.choices[layer] = keep_columns(keep, None if stretch.full else stretch.new_mask)
        recycled = self.recycled.get(layer, ())
        self.stretches.append(stretch.next(before, keep, chosen, self.compact, recycled))
        self.reservation.shorten(self.cache, number + 1, self._layers_of(number + 1), self.stretches[-1])

    def rank_ahead(self, layer: int, following: nn.Module, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """Cut behind ``layer`` by what the layer ``following`` it computes of all columns.

        Args:
            hidden: ``[B, S, width]``, output of ``layer``.
            given: the arguments that ``following`` was called with.

        Returns:
            The hidden states that go on.
        """
        if len(self.stretches) == self.layers.index(layer) + 1:
            if self.policy is None:
                self._selected[layer] = None
            else:
                model: Any = following
                changed = self.arguments(layer, hidden) if layer > self.layers[0] else {}
                self._ranking = True
                try:
                    with torch.no_grad(), running(self):
                        states = model.input_layernorm(hidden)
                        arguments = {**given, **changed, CACHE: None}
                        arguments.pop(PART_KEYWORD, None)
                        model.self_attn(hidden_states=states, **arguments)
                except Ranked:
                    pass
                finally:
                    self._ranking = False
        return self.cut(layer, hidden)

    def narrowing(self, layer: int) -> None:
        """Every token's attention is needed: the cut comes behind the layer."""

    def cut(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states ``[B, S, width]`` that go on after ``layer``."""
        if layer not in self._selected:
            raise NotAppliedError(
                f"Decoder layer {layer} ran without its attention being seen: its forward was replaced after "
                "attaching, or its attention no longer goes through transformers' attention interface."
            )
        if len(self.stretches) == self.layers.index(layer) + 1:
            self._go_on(layer, self._selected[layer], hidden)
        for merged in self.recycled.get(layer, ()):
            hidden = with_means(hidden, merged)
        choice = self.choices.get(layer)
        return hidden if choice is None else choice.take(hidden)

    def arguments(self, layer: int, hidden: Tensor) -> dict[str, Any]:
        """Mask, rotary embedding and positions for ``layer``, which lies behind a cut."""
        number = bisect_left(self.layers, layer)
        kind = layer_kind(self.parts.language_model.config, layer)
        if (number, kind) not in self._arguments:
            stretch = self.stretches[number]
            model: Any = self.parts.language_model
            positions = stretch.positions.to(hidden.device)
            # Places in a picture repeat, so they are not given where attention would look for packed sequences.
            in_text = positions if positions.dim() == 2 else None
            mask = stretch.needed_mask(in_order=self.compact or in_text is None)
            self._arguments[number, kind] = {
                "attention_mask": mask_for(model, kind, layer, hidden, mask, self.cache),
                "position_ids": in_text,
                "position_embeddings": rotary_of(model, hidden, positions, kind),
            }
        return self._arguments[number, kind]


def rotary_of(model: Any, hidden: Tensor, positions: Tensor, kind: str) -> Any:
    """The rotary embedding of ``positions`` for layers of one kind; ``None`` where a language model has none.

    Args:
        model: the language model.
        hidden: ``[B, S, width]``, for dtype and device.
        positions: ``[B, S]``, or ``[axes, B, S]``.
        kind: see :func:`layer_kind`; some models turn each kind by frequencies of its own.
    """
    rotary: nn.Module | None = getattr(model, "rotary_emb", None)
    if rotary is None or kind not in getattr(rotary, "layer_types", [kind]):
        return None
    by_kind = {"layer_type": kind} if "layer_type" in inspect.signature(rotary.forward).parameters else {}
    return rotary(hidden, position_ids=positions, **by_kind)


def with_means(hidden: Tensor, recycled: Recycled) -> Tensor:
    """``hidden`` ``[B, S, width]`` with the means of clusters at their places."""
    members = hidden[recycled.row, recycled.members].float()
    slots = members.new_empty(len(recycled.places), members.shape[1])
    cluster = recycled.cluster[:, None].expand_as(members)
    means = slots.scatter_reduce(0, cluster, members, "mean", include_self=False)
    row = torch.full_like(recycled.places, recycled.row)
    return hidden.index_put((row, recycled.places), means.to(hidden.dtype))


def mask_for(model: Any, kind: str, layer: int, hidden: Tensor, attended: Tensor | None, cache: Cache | None) -> Any:
    """The mask of a decoder layer.

    Args:
        model: the language model.
        kind: :func:`layer_kind`.
        layer: its index.
        hidden: ``[B, S, width]``, what goes into it.
        attended: ``[B, cached + S]``, 1 for real tokens; ``None`` where all are.
        cache: its cache.
    """
    make: Any = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
    given = {"config": model.config, "inputs_embeds": hidden, "attention_mask": attended, "position_ids": None}
    return make(**given, layer_idx=layer, **{CACHE: cache})


def layer_kind(config: Any, layer: int) -> str:
    """Which mask a decoder layer takes: ``"full_attention"``, ``"sliding_attention"``..."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return str(kinds[layer])
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
