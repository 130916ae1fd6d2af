"""Which decoders can be cut between two layers, told from the signatures of their classes.

Behind a cut every layer needs a mask, positions and rotary embeddings of the tokens that are left. That is known for
the arguments named here. A layer, or a decoder, that takes anything else about single tokens (per-layer embeddings,
shared keys and values, token types for its experts) is refused by the argument's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

INJECTION = "_deepstack_process"
"""The decoder's method that adds intermediate features of the tower behind its first layers."""

FOLLOWED = {
    "self",
    "hidden_states",
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "cache",
    "past_key_values",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
    "kwargs",
}
"""Arguments of a decoder layer that can be given for the tokens behind a cut, or that say nothing of single tokens."""

OF_DECODERS = FOLLOWED - {"hidden_states", "position_embeddings"} | {
    "input_ids",
    "inputs_embeds",
    "output_hidden_states",
    "return_dict",
}
"""The same of a decoder."""

OF_INJECTION = {"visual_pos_masks", "deepstack_visual_embeds"}
"""Arguments of a decoder that go to :data:`INJECTION` alone."""


def decoder_layers_of(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that a decoder runs; some hold more, for predicting several tokens at once."""
    model: Any = decoder
    return tuple(model.layers[: getattr(model.config, "num_hidden_layers", None)])


def injection_of(decoder: nn.Module) -> str | None:
    """The name of a decoder's method that adds intermediate features, if it has one."""
    return INJECTION if hasattr(type(decoder), INJECTION) else None


def why_decoder_stays_whole(decoder: nn.Module) -> str:
    """Why nothing can be cut inside a decoder; empty where every layer can follow a cut."""
    layers = decoder_layers_of(decoder)
    known = OF_DECODERS | (OF_INJECTION if injection_of(decoder) else set())
    for kind, allowed in [(type(decoder), known), *((kind, FOLLOWED) for kind in kinds_of(layers))]:
        strange = sorted(set(inspect.signature(kind.forward).parameters) - allowed)
        if strange:
            return f"has a decoder whose {kind.__name__} takes {', '.join(strange)}, which does not follow a cut"
    config: Any = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ())
    unknown = sorted(kind for kind in kinds if not callable(LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.get(kind)))
    if unknown:
        return f"has decoder layers of kind {', '.join(unknown)}, whose mask is not known"
    if not any(sees(layer) for layer in layers):
        return "has a decoder whose layers have no self_attn that goes through transformers' attention interface"
    return ""


def sees(layer: nn.Module) -> bool:
    """Whether a decoder layer's attention can be observed."""
    attention = getattr(layer, "self_attn", None)
    return isinstance(attention, nn.Module) and "get_interface" in source_of(type(attention))


def source_of(kind: type) -> str:
    """The source of a class; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def kinds_of(modules: Iterable[nn.Module]) -> list[type[nn.Module]]:
    """The classes of modules, each once, in order."""
    return list(dict.fromkeys(type(module) for module in modules))
