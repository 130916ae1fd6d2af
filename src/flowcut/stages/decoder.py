"""The cut inside the language model: after given decoder layers, visual columns leave the sequence.

Between two cuts lies a *stretch* of decoder layers that all see the same columns. transformers builds mask, rotary
embedding and positions once for all layers; here every stretch behind a cut gets its own, in the prefill and in every
later step, and the cache of its layers stays as short as its columns. A method that ranks ahead chooses by what the
attention behind the cut computes of all columns: that layer's projections then run once more, for the ranking alone.
Features that a model adds to its first layers' visual tokens (DeepStack) are reduced to the tokens left there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

from ..errors import NotAppliedError
from ..methods.base import DecoderPolicy, DecoderView, Method
from ..models.base import ModelParts
from .attention import PASS_KEYWORD, Observation
from .cache import CacheState
from .columns import ColumnCut, all_columns, keep_columns, shifted_positions
from .overrides import Override


@dataclass(frozen=True)
class Stretch:
    """The columns that a run of decoder layers sees.

    Attributes:
        before: the state of these layers' cache before this pass.
        cut: which columns of the prompt they are.
        new_mask: ``[B, S]``, 1 for real tokens.
        positions: ``[B, S]``, position ids, or ``[axes, B, S]`` where they are places in a picture.
        removed: ``[B]``, columns that each sample lost in this pass.
        image: ``[B, S]``, image of each visual token, -1 for text.
    """

    before: CacheState
    cut: ColumnCut
    new_mask: Tensor
    positions: Tensor
    removed: Tensor
    image: Tensor

    @property
    def attended(self) -> Tensor:
        """``[B, cached + S]``, the attention mask of these layers."""
        return torch.cat([self.before.attention_mask.to(self.new_mask), self.new_mask], dim=1)

    @property
    def after(self) -> CacheState:
        """The state of these layers' cache after this pass."""
        uncut_length = self.before.uncut_length + self.cut.source_length
        return CacheState(self.attended, self.before.removed + self.removed, uncut_length)

    def last_before(self, length: int) -> Tensor:
        """``[B]``: the last real column of every sample that comes from the prompt's first ``length`` columns."""
        columns = self.cut.columns().masked_fill(self.new_mask == 0, -1)
        return columns.masked_fill(columns >= length, -1).argmax(dim=1)

    def next(self, before: CacheState, keep: Tensor, chosen: ColumnCut, compact: bool) -> Stretch:
        """The stretch behind a cut that keeps the columns ``keep`` ``[B, S]`` of this one, as ``chosen`` plans it."""
        dropped = ~keep
        return Stretch(
            before=before,
            cut=self.cut.then(chosen),
            new_mask=chosen.take(self.new_mask),
            positions=shifted_positions(self.positions, chosen, before.removed - self.before.removed, dropped, compact),
            removed=self.removed + dropped.sum(dim=1),
            image=chosen.take(self.image, -1),
        )


class Ranked(Exception):
    """Ends a call of an attention module that served the ranking alone."""


class DecoderPass:
    """One forward pass through the language model."""

    def __init__(
        self,
        stage: DecoderStage,
        first: Stretch,
        states: tuple[CacheState, ...],
        targets: tuple[int, ...],
        prompt_length: int,
        cache: Cache | None,
    ) -> None:
        self.parts = stage.parts
        self.layers = stage.layers
        self.compact = stage.method.positions == "compact"
        self.policy: DecoderPolicy | None = stage.method.decoder_policy() if targets else None
        self.targets = targets
        self.prompt_length = prompt_length
        self.cache = cache
        self.states = states
        self.stretches = [first]
        self.choices: dict[int, ColumnCut] = {}
        self._ranking = False
        self._arguments: dict[tuple[int, str], dict[str, Any]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Let the policy choose, from q, k, v of a layer that cuts."""
        number = self.layers.index(layer)
        if len(self.stretches) > number + 1:
            return mask
        stretch = self.stretches[number]
        keep = None
        if self.policy is not None:
            new = query.shape[2]
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                keep = self.policy.select(
                    DecoderView(
                        layer=layer,
                        query=query,
                        key=key[:, :, -new:],
                        value=value[:, :, -new:],
                        scaling=scaling,
                        image=stretch.image.to(query.device),
                        real=stretch.new_mask.to(query.device).bool(),
                        last=stretch.last_before(self.prompt_length).to(query.device),
                        targets=self.targets,
                    )
                )
        self._go_on(layer, keep)
        if self._ranking:
            raise Ranked
        return mask

    def _go_on(self, layer: int, keep: Tensor | None) -> None:
        """Begin the stretch behind ``layer`` with the columns ``keep`` ``[B, S]``, or with all."""
        number = self.layers.index(layer)
        stretch = self.stretches[number]
        before = self.states[number + 1] if len(self.states) > number + 1 else self.states[0]
        if keep is None:
            keep = torch.ones_like(stretch.cut.real)
            chosen = all_columns(keep)
        else:
            chosen = self.choices[layer] = keep_columns(keep, stretch.new_mask)
        self.stretches.append(stretch.next(before, keep, chosen, self.compact))

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
                self._go_on(layer, None)
            else:
                model: Any = following
                changed = self.arguments(layer, hidden) if layer > self.layers[0] else {}
                self._ranking = True
                try:
                    with torch.no_grad():
                        states = model.input_layernorm(hidden)
                        model.self_attn(
                            hidden_states=states, **{**given, **changed, "past_key_values": None, PASS_KEYWORD: self}
                        )
                except Ranked:
                    pass
                finally:
                    self._ranking = False
        return self.cut(layer, hidden)

    def narrowing(self, layer: int) -> None:
        """Every token's attention is needed: the cut comes behind the layer."""

    def cut(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states ``[B, S, width]`` that go on after ``layer``."""
        if len(self.stretches) < self.layers.index(layer) + 2:
            raise NotAppliedError(
                f"Decoder layer {layer} ran without its attention being seen: its forward was replaced after "
                "attaching, or its attention no longer goes through transformers' attention interface."
            )
        choice = self.choices.get(layer)
        return hidden if choice is None else choice.take(hidden)

    def arguments(self, layer: int, hidden: Tensor) -> dict[str, Any]:
        """Mask, rotary embedding and positions for ``layer``, which lies behind a cut."""
        number = bisect_left(self.layers, layer)
        kind = layer_kind(self.parts.language_model.config, layer)
        if (number, kind) not in self._arguments:
            stretch = self.stretches[number]
            model: Any = self.parts.language_model
            make_mask: Any = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind]
            positions = stretch.positions.to(hidden.device)
            # Places in a picture repeat, so they are not given where attention would look for packed sequences.
            in_text = positions if positions.dim() == 2 else None
            self._arguments[number, kind] = {
                "attention_mask": make_mask(
                    config=model.config,
                    inputs_embeds=hidden,
                    attention_mask=stretch.attended,
                    past_key_values=self.cache,
                    position_ids=in_text,
                    layer_idx=layer,
                ),
                "position_ids": in_text,
                "position_embeddings": model.rotary_emb(hidden, position_ids=positions),
            }
        return self._arguments[number, kind]


def layer_kind(config: Any, layer: int) -> str:
    """Which mask a decoder layer takes: ``"full_attention"``, ``"sliding_attention"``..."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return str(kinds[layer])
    return "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"


class DecoderStage:
    """Keeps a method attached to the language model's layers until :meth:`close`.

    Args:
        parts: the model.
        method: names the layers that cut.

    Raises:
        ValueError: a layer that cuts does not exist, or no layer is left behind it.
    """

    def __init__(self, parts: ModelParts, method: Method) -> None:
        self.parts = parts
        self.method = method
        self.layers = method.decoder_layers(parts.second_cut)
        check_layers(self.layers, len(parts.decoder_layers))
        ahead = 1 if method.ranks_ahead else 0
        attentions = [parts.decoder_layers[layer + ahead].get_submodule("self_attn") for layer in self.layers]
        self.observation = Observation(attentions, self.layers) if attentions else None
        self.handles = []
        self.overrides = []
        if attentions and parts.injection is not None:
            model = parts.language_model
            self.handles += [
                model.register_forward_pre_hook(enter_model, with_kwargs=True),
                model.register_forward_hook(leave_model, always_call=True),
            ]
            self.overrides.append(Override(model, parts.injection, inject))
        if attentions:
            for index, layer in enumerate(parts.decoder_layers):
                self.handles.append(
                    layer.register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True)
                )
            for index in () if method.ranks_ahead else self.layers:
                self.handles.append(
                    parts.decoder_layers[index].register_forward_hook(
                        partial(self._after_layer, index), prepend=True, with_kwargs=True
                    )
                )

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self.handles:
            handle.remove()
        for override in self.overrides:
            override.close()
        if self.observation is not None:
            self.observation.close()

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current: DecoderPass | None = kwargs.get(PASS_KEYWORD)
        kwargs = dict(kwargs)
        observed = index - 1 if self.method.ranks_ahead else index
        if observed not in self.layers:
            kwargs.pop(PASS_KEYWORD, None)
        elif self.observation is not None:
            self.observation.refresh()
        if current is not None and index > self.layers[0]:
            hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
            if self.method.ranks_ahead and observed in self.layers:
                hidden = current.rank_ahead(observed, module, hidden, kwargs)
            args = (hidden, *args[1:])
            kwargs.update(current.arguments(index, hidden))
        return args, kwargs

    def _after_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        current: DecoderPass | None = kwargs.get(PASS_KEYWORD)
        return None if current is None else current.cut(index, output)


_running: ContextVar[DecoderPass | None] = ContextVar("flowcut_decoder_pass", default=None)
"""The pass whose language model is running in this thread, where it injects features between its layers."""


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook of a language model that injects features."""
    _running.set(kwargs.get(PASS_KEYWORD))


def leave_model(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Hook behind it, also after an error."""
    _running.set(None)


def inject(original: Callable[..., Tensor], hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
    """The model's injection, for the visual tokens that the cuts so far left.

    Args:
        original: the model's own.
        hidden: ``[B, S, width]`` behind the last layer that ran.
        visual: boolean ``[B, L]``, the visual tokens that entered the language model.
        features: ``[visual tokens, width]``, one for each.
    """
    current = _running.get()
    if current is not None and current.choices:
        number = (visual.flatten().cumsum(0) - 1).view_as(visual)
        for chosen in current.choices.values():
            number, visual = chosen.take(number), chosen.take(visual)
        features = features[number[visual].to(features.device)]
    return original(hidden, visual, features)


def check_layers(layers: tuple[int, ...], depth: int) -> None:
    """Refuse cuts where there is nothing to cut.

    Raises:
        ValueError: see :class:`DecoderStage`.
    """
    if list(layers) != sorted(set(layers)) or any(not 0 <= layer < depth - 1 for layer in layers):
        raise ValueError(
            f"Cuts inside the language model are asked for after decoder layers {list(layers)}; they must ascend and "
            f"lie between 0 and {depth - 2}, so that a layer follows (the model has {depth} layers)."
        )
