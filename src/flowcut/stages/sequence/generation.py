"""Where ``generate()`` itself counts placeholders or cached tokens, and must be told of the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache

from ...errors import FlowCutError, UnsupportedModelError
from ...models.base import ModelParts
from ...trace import ImageTrace
from ..forward_pass import joined
from ..observing.overrides import Override
from ..projector.features import TRACES, features_of_images
from .cache import read_states
from .cache_argument import cache_in
from .placeholders import are_placeholders, rows_of_images

_PROMPT = "flowcut_prompt"
_ORIGINAL = "flowcut_original"


def generation_overrides(parts: ModelParts, owner: object, cuts_inside: bool) -> list[Override]:
    """What of ``generate()`` is overridden on the model; ``cuts_inside``: the method cuts inside the language model."""
    top = parts.top
    return [
        Override(top, "_expand_multimodal_outputs", partial(expand_with_traces, parts)),
        Override(top, "_prefill", partial(prefill, owner, cuts_inside)),
        Override(top, "_prepare_position_ids_for_generation", prepare_positions),
        Override(top, "_get_candidate_generator", remember_prompt),
    ]


def expand_with_traces(
    parts: ModelParts,
    original: Callable[..., Any],
    input_ids: Tensor | None,
    mm_encoder_output: dict[str, Any],
    expand_size: int = 1,
    inputs_embeds: Tensor | None = None,
) -> dict[str, Any]:
    """Repeat the images of every sample for its beams.

    transformers finds out which images belong to a sample by comparing numbers of features and placeholders, which
    no longer agree after a cut (and versions before 5.23 mix up the order of several images in one sample).
    """
    cut = {name: output for name, output in mm_encoder_output.items() if hasattr(output, TRACES)}
    rest = {name: output for name, output in mm_encoder_output.items() if name not in cut}
    original(input_ids, rest, expand_size=expand_size, inputs_embeds=inputs_embeds)
    model: Any = parts.base
    if input_ids is not None and not input_ids.numel():
        input_ids = None
    for name, output in cut.items():
        traces: list[ImageTrace] = getattr(output, TRACES)
        found = are_placeholders(model.get_input_embeddings(), parts.placeholders[name], input_ids, inputs_embeds)
        rows = rows_of_images(found.sum(dim=1).tolist(), traces, name)
        images = groupby(enumerate(rows), key=itemgetter(1))
        order = [image for _, sample in images for image in [number for number, _ in sample] * expand_size]
        whole = bool(traces) and all(trace.whole for trace in traces)
        given = features_of_images(output.pooler_output, traces) if whole else output.pooler_output
        features = [given[image] for image in order]
        output.pooler_output = torch.stack(features) if isinstance(given, Tensor) else features
        if getattr(output, "deepstack_features", None) is not None:
            output.deepstack_features = [[level[image] for image in order] for level in output.deepstack_features]
        setattr(output, TRACES, [traces[image] for image in order])
    return mm_encoder_output


def prefill(
    owner: object,
    cuts_inside: bool,
    original: Callable[..., Any],
    input_ids: Tensor,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``generate()``'s prefill. Continuing on a cache, it slices the prompt by the cache's length.

    Raises:
        FlowCutError: prefill in chunks; transformers then slices features by placeholder number.
        UnsupportedModelError: without a cache pictures are encoded anew at every step, as older releases do in some
            classes; a cut by the prompt's last token would then follow the answer's.
    """
    if generation_config.prefill_chunk_size is not None:
        raise FlowCutError(
            f"prefill_chunk_size={generation_config.prefill_chunk_size} is not supported while a method is "
            "attached: after the cut the prompt is short. Leave prefill_chunk_size at None."
        )
    pictured = any(name.startswith("pixel_values") and given is not None for name, given in model_kwargs.items())
    if cuts_inside and pictured and not generation_config.use_cache:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} encodes the pictures of this class anew at every step without a "
            "cache, so that a cut inside the language model would not follow the prompt alone. Leave use_cache on, use "
            "a method that cuts in front of it, or install a newer transformers; if the class is your own, let "
            "its forward name the argument mm_encoder_outputs."
        )
    with joined(owner) as current, uncut_length(cache_in(model_kwargs)) as current.recounted:
        return original(input_ids, generation_config, model_kwargs, *args, **kwargs)


def prepare_positions(
    original: Callable[..., Tensor], inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
) -> Tensor:
    """``generate()``'s position ids. Continuing on a cache, some models tell old tokens from new by its length."""
    with uncut_length(cache_in(model_kwargs)):
        return original(inputs_tensor, model_kwargs, *args, **kwargs)


@contextmanager
def uncut_length(cache: Cache | None) -> Iterator[Override | None]:
    """While the block runs, or until the override is closed, a cut cache tells the length it stands for."""
    states = read_states(cache)
    if not states:
        yield None
        return
    override = Override(cache, "get_seq_length", partial(_told, states[0].uncut_length))
    try:
        yield override
    finally:
        override.close()


def _told(length: int, original: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    return length


def remember_prompt(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Assisted decoding, prompt lookup too, prepares itself: its first pass is handed candidates with the prompt."""
    for output in (kwargs["model_kwargs"].get("mm_encoder_outputs") or {}).values():
        setattr(output, _PROMPT, kwargs["input_ids"])
    return original(*args, **kwargs)


def recall(output: Any, original: Any) -> None:
    """Let a copy of encoded images know what became of them: accelerate's hooks hand on copies of all arguments."""
    if original is not None and output is not None and not hasattr(output, TRACES):
        setattr(output, TRACES, getattr(original, TRACES))
        setattr(output, _ORIGINAL, original)


def prompt_length(outputs: Any, tokens: Tensor, cached: int) -> int:
    """How many columns of ``tokens`` are the prompt, and not generated on top of it without a cache.

    ``generate(use_cache=False)`` passes the same encoded images with the prompt and all tokens so far at every step.

    Args:
        outputs: the encoded images; remembers the first prompt it came with.
        tokens: ``[B, L]`` token ids, or ``[B, L, width]`` embeddings.
        cached: columns in front of them that a cache stands for.
    """
    outputs = getattr(outputs, _ORIGINAL, outputs)
    prompt: Tensor | None = getattr(outputs, _PROMPT, None)
    for known in () if prompt is None else (prompt, prompt[:, cached:]):
        if known.shape[1] and torch.equal(tokens[:, : known.shape[1]], known):
            return known.shape[1]
    setattr(outputs, _PROMPT, tokens)
    return tokens.shape[1]
