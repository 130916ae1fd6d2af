"""What a cut sequence leaves on its cache object, so that later steps can go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ...errors import FlowCutError
from ...trace import CacheState
from ..observing.overrides import Override

_ATTRIBUTE = "flowcut_state"
_LAYERS = "flowcut_layers"
_FOLLOWED = "flowcut_followed"


def read_states(cache: Cache | None) -> tuple[CacheState, ...]:
    """The states of a cache whose sequence was cut, one for every stretch of layers between cuts; else none."""
    states: tuple[CacheState, ...] = getattr(cache, _ATTRIBUTE, ())
    if cache is None or not states:
        return ()
    length: Any = cache.get_seq_length()
    if isinstance(length, Tensor):
        # Of a static cache; to read it is to wait for the device, so what shortens it is followed instead.
        return states
    excess = states[0].cached - length
    if not excess:
        return states
    return tuple(state.cropped(excess) for state in states) if length else ()


def states_for(cache: Cache | None, layers: tuple[int, ...]) -> tuple[CacheState, ...]:
    """:func:`read_states`, for a method that cuts behind the decoder layers ``layers``.

    Raises:
        FlowCutError: another method cut the sequence behind other decoder layers, so that these layers' caches are of
            other lengths.
    """
    states, before = read_states(cache), getattr(cache, _LAYERS, ())
    if not states or before == layers:
        return states
    if not before:
        return states * (1 + len(layers))
    raise FlowCutError(
        f"The cache's sequence was cut inside the language model, behind its layers {list(before)}, and the method "
        f"that is attached now cuts behind {list(layers)}. Go on with the method that cut it, or with a new cache."
    )


def write_states(cache: Cache, states: tuple[CacheState, ...], layers: tuple[int, ...]) -> None:
    """Leave ``states`` on a cache, one for every stretch of layers between cuts behind ``layers``."""
    setattr(cache, _ATTRIBUTE, states)
    setattr(cache, _LAYERS, layers)
    if isinstance(cache.get_seq_length(), Tensor) and not hasattr(cache, _FOLLOWED):
        setattr(cache, _FOLLOWED, True)
        for name, function in (("crop", _crop), ("reset", _reset)):
            Override(cache, name, function)


def begun(cache: Cache | None, columns: int) -> bool:
    """Whether a cache holds tokens in front of a call of so many columns."""
    if cache is None:
        return False
    length: Any = cache.get_seq_length()
    # A static cache's length lies on the device; a step of decoding does not wait to read it.
    return bool(length) if columns > 1 or not isinstance(length, Tensor) else True


def caches_in(output: Any) -> list[Cache]:
    """The caches in a model's output (a ``ModelOutput`` or a tuple)."""
    return [value for value in (output if isinstance(output, tuple) else output.values()) if isinstance(value, Cache)]


def _crop(original: Any, tokens_to_remove: int) -> None:
    """A static cache's ``crop``. The cache is that of the bound method, so a copy of the cache has its own."""
    original(tokens_to_remove)
    cache = original.__self__
    setattr(cache, _ATTRIBUTE, tuple(state.cropped(abs(tokens_to_remove)) for state in getattr(cache, _ATTRIBUTE)))


def _reset(original: Any) -> None:
    """A static cache's ``reset``."""
    original()
    setattr(original.__self__, _ATTRIBUTE, ())


def selected(cache: Cache, rows: Sequence[int]) -> Cache:
    """A copy of a cache in which sample i is a copy of sample ``rows[i]``."""
    copied: Any = deepcopy(cache)
    copied.batch_select_indices(torch.tensor(rows))
    states = tuple(
        replace(state, mask=state.mask[list(rows)], removed=state.removed[list(rows)]) for state in read_states(cache)
    )
    if states:
        setattr(copied, _ATTRIBUTE, states)
    result: Cache = copied
    return result
