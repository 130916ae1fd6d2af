"""The cut inside the language model: after given decoder layers, visual columns leave the sequence.

Between two cuts lies a *stretch* of decoder layers that all see the same columns. transformers builds mask, rotary
embedding and positions once for all layers; here every stretch behind a cut gets its own, in the prefill and in every
later step, and the cache of its layers stays as short as its columns. A method that ranks ahead chooses by what the
attention behind the cut computes of all columns: that layer's projections then run once more, for the ranking alone.
Features that a model adds to its first layers' visual tokens (DeepStack) are reduced to the tokens left there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...methods.base import Method
from ...models.base import ModelParts
from ..forward_pass import PART_KEYWORD, at_work, run_layer
from ..observing.attention import Observation
from ..observing.checkpointing import follow_checkpointing
from ..observing.overrides import Override
from ..observing.stage import Stage
from ..observing.tracing import untraced
from ..sequence.step import STEP
from .decoder_pass import DecoderPass
from .decoder_step import DecoderStep, embed_stretches


class DecoderStage(Stage):
    """Keeps a method attached to the language model's layers until :meth:`close`.

    Args:
        parts: the model.
        method: names the layers that cut.

    Raises:
        ValueError: a layer that cuts does not exist, or no layer is left behind it.
    """

    def __init__(self, parts: ModelParts, method: Method) -> None:
        super().__init__()
        self.parts = parts
        self.method = method
        self.layers = method.decoder_layers(parts.second_cut)
        check_layers(self.layers, len(parts.decoder_layers))
        ahead = 1 if method.ranks_ahead else 0
        attentions = watched_attentions(parts, method)
        self.observations = [Observation(attentions, self.layers)] if attentions else []
        rotary = getattr(parts.language_model, "rotary_emb", None)
        if attentions and rotary is not None:
            self.overrides.append(Override(rotary, "forward", embed_stretches))
        if attentions and parts.injection is not None:
            self.overrides.append(Override(parts.language_model, parts.injection, inject))
        if attentions:
            watched = [parts.decoder_layers[layer + ahead] for layer in self.layers]
            self.overrides += [Override(layer, "forward", run_layer) for layer in watched]
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

    def _before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        if STEP in kwargs:
            changed = kwargs.pop(STEP).get(index, {})
            return args, {**kwargs, **taken(changed, kwargs)}
        return self._with_part(index, module, args, kwargs)

    @untraced
    def _with_part(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a layer, from the part that runs."""
        current: DecoderPass | DecoderStep | None = kwargs.get(PART_KEYWORD)
        if isinstance(current, DecoderStep):
            del kwargs[PART_KEYWORD]
            if index > self.layers[0]:
                hidden = args[0] if args else kwargs["hidden_states"]
                kwargs |= taken(current.arguments(index, hidden, kwargs.get("position_embeddings")), kwargs)
            return args, kwargs
        observed = index - 1 if self.method.ranks_ahead else index
        if observed not in self.layers:
            kwargs.pop(PART_KEYWORD, None)
        else:
            self.observations[0].refresh()
            self.overrides += follow_checkpointing([module])
        if current is not None and index == 0:
            current.enter(args[0] if args else kwargs["hidden_states"])
        if current is not None and index > self.layers[0]:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if self.method.ranks_ahead and observed in self.layers:
                hidden = current.rank_ahead(observed, module, hidden, kwargs)
            args = (hidden, *args[1:])
            kwargs |= taken(current.arguments(index, hidden), kwargs)
        return args, kwargs

    def _after_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        return self._cut(index, kwargs[PART_KEYWORD], output) if PART_KEYWORD in kwargs else None

    @untraced
    def _cut(self, index: int, current: DecoderPass, output: Any) -> Any:
        return current.cut(index, output)


def taken(changed: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What of ``changed`` a layer takes: one without an argument, or with none in it, keeps it that way."""
    return {name: value for name, value in changed.items() if given.get(name) is not None or name == "attention_mask"}


def inject(original: Callable[..., Tensor], hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
    """The model's injection, for the visual tokens that the cuts so far left.

    Args:
        original: the model's own.
        hidden: ``[B, S, width]`` behind the last layer that ran.
        visual: boolean ``[B, L]``, the visual tokens that entered the language model.
        features: ``[visual tokens, width]``, one for each.
    """
    current_pass = at_work()
    current = None if current_pass is None else current_pass.decoder
    if isinstance(current, DecoderPass) and current.choices:
        number = (visual.flatten().cumsum(0) - 1).view_as(visual)
        for chosen in current.choices.values():
            number, visual = chosen.take(number), chosen.take(visual)
        features = features[number[visual].to(features.device)]
    return original(hidden, visual, features)


def watched_attentions(parts: ModelParts, method: Method) -> list[nn.Module]:
    """The attention modules by which a method's cuts inside the language model are chosen."""
    ahead = 1 if method.ranks_ahead else 0
    layers = [layer + ahead for layer in method.decoder_layers(parts.second_cut)]
    attentions = [attention_of(parts, layer) for layer in layers]
    if ahead and not all(hasattr(parts.decoder_layers[layer], "input_layernorm") for layer in layers):
        raise UnsupportedModelError(
            f"{method.name} ranks by the attention of the next layer, behind its input_layernorm, and "
            f"{type(parts.decoder_layers[layers[0]]).__name__} has none. Use a method that ranks by the layer it cuts "
            "behind, such as FastV."
        )
    return attentions


def attention_of(parts: ModelParts, layer: int) -> nn.Module:
    """The attention module of a decoder layer.

    Raises:
        UnsupportedModelError: the layer has none, as in models of which only some layers attend.
    """
    attention = getattr(parts.decoder_layers[layer], "self_attn", None)
    if not isinstance(attention, nn.Module):
        attending = [number for number, one in enumerate(parts.decoder_layers) if hasattr(one, "self_attn")]
        raise UnsupportedModelError(
            f"Decoder layer {layer} of {type(parts.base).__name__} computes no attention by which tokens could be "
            f"ranked ({type(parts.decoder_layers[layer]).__name__}). Layers that do: {attending}."
        )
    return attention


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
