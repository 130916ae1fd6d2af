"""What ``generate()`` prepares for a step, above all on a static cache.

A static cache reserves its length before the first pass, so that a compiled model finds the same memory in every step.
transformers makes the masks of a call in front of the model, and compiles the model by itself on a GPU. So a step on a
cut cache is translated there as well (:meth:`~flowcut.stages.sequence.step.Steps.prepared`), and the gate lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_masks_for_generate

from ...models.base import ModelParts
from ..observing.overrides import Override
from .cache import read_states, states_for, write_states
from .cache_argument import cache_in
from .reservation import MADE
from .step import Steps


def preparing_overrides(parts: ModelParts, steps: Steps) -> list[Override]:
    """What of ``generate()`` is overridden where it prepares a step, and a static cache."""
    top = parts.top
    prepared = Prepared(steps, getattr(top, "create_masks_for_generate", create_masks_for_generate))
    return [
        Override(top, "prepare_inputs_for_generation", prepared.inputs),
        Override(top, "create_masks_for_generate", prepared.masks, default=create_masks_for_generate),
        Override(top, "_prepare_static_cache", mark_made),
    ]


class Prepared:
    """What ``generate()`` prepares for a call."""

    def __init__(self, steps: Steps, make_masks: Callable[..., Any]) -> None:
        self.steps = steps
        self.make_masks = make_masks

    def inputs(self, original: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """``prepare_inputs_for_generation``: a step on a cut static cache counts what is left."""
        inputs = original(*args, **kwargs)
        cache = cache_in(kwargs)
        states = () if kwargs.get("is_first_iteration") else states_for(cache, self.steps.layers)
        if cache is not None and states:
            # What generate() adds to the prompt is no padding, and what was padding is known.
            inputs["attention_mask"] = None
            if cache.is_compileable:
                write_states(cache, self.steps.prepared(self.make_masks, inputs, states), self.steps.layers)
        return inputs

    def masks(self, original: Callable[..., Any], **kwargs: Any) -> Any:
        """``create_masks_for_generate``: none while the columns are uncut, those of the caller go to the gate."""
        cache = cache_in(kwargs)
        length = 0 if cache is None else cache.get_seq_length()
        begins = kwargs.get("is_first_iteration") or (not isinstance(length, Tensor) and length == 0)
        if begins or read_states(cache):
            return kwargs["attention_mask"]
        return original(**kwargs)


def mark_made(original: Callable[..., Cache], *args: Any, **kwargs: Any) -> Cache:
    """``_prepare_static_cache``: a cache that ``generate()`` makes for one generation may be shortened."""
    cache = original(*args, **kwargs)
    setattr(cache, MADE, True)
    return cache
