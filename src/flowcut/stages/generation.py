"""Where ``generate()`` itself counts placeholders or cached tokens, and must be told of the cut."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..errors import FlowCutError
from .cache import read_states
from .vision import TRACES

new_columns: ContextVar[int | None] = ContextVar("flowcut_new_columns", default=None)
"""During a prefill that continues on a cut cache: how many columns of the prompt are new."""


class StandIn:
    """Takes the place of one image's features where only their number counts: that of the placeholders."""

    def __init__(self, image: int, placeholders: int) -> None:
        self.image = image
        self.placeholders = placeholders

    def __len__(self) -> int:
        return self.placeholders


def expand_with_traces(
    original: Callable[..., Any],
    input_ids: Tensor,
    mm_encoder_output: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Repeat the images for every beam; transformers groups them by counting placeholders."""
    cut = {name: output for name, output in mm_encoder_output.items() if hasattr(output, TRACES)}
    stacked = {name for name, output in cut.items() if isinstance(output.pooler_output, Tensor)}
    features = {name: list(output.pooler_output) for name, output in cut.items()}
    for output in cut.values():
        traces = getattr(output, TRACES)
        output.pooler_output = [StandIn(image, trace.placeholders) for image, trace in enumerate(traces)]
    expanded = original(input_ids, mm_encoder_output, *args, **kwargs)
    for name, output in cut.items():
        order = [stand_in.image for stand_in in output.pooler_output]
        ordered = [features[name][image] for image in order]
        output.pooler_output = torch.stack(ordered) if name in stacked else ordered
        setattr(output, TRACES, [getattr(output, TRACES)[image] for image in order])
    return expanded


def prefill(
    original: Callable[..., Any],
    input_ids: Tensor,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``generate()``'s prefill. Continuing on a cache, it slices the prompt by the cache's cut length.

    Raises:
        FlowCutError: prefill in chunks; transformers then slices features by placeholder number.
    """
    if generation_config.prefill_chunk_size is not None:
        raise FlowCutError(
            f"prefill_chunk_size={generation_config.prefill_chunk_size} is not supported while a method is "
            "attached: after the cut the prompt is short. Leave prefill_chunk_size at None."
        )
    new = None
    states = read_states(model_kwargs.get("past_key_values"))
    if states:
        mask = model_kwargs.get("attention_mask")
        whole = mask.shape[1] if mask is not None else generation_config._mask_length
        new = whole - states[0].uncut_length
    token = new_columns.set(new)
    try:
        return original(input_ids, generation_config, model_kwargs, *args, **kwargs)
    finally:
        new_columns.reset(token)
