"""What a cut sequence leaves on its cache object, so that later steps can go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from ...trace import CacheState

_ATTRIBUTE = "flowcut_state"


def read_states(cache: Cache | None) -> tuple[CacheState, ...]:
    """The states of a cache whose sequence was cut, one for every stretch of layers between cuts; else none."""
    states: tuple[CacheState, ...] = getattr(cache, _ATTRIBUTE, ())
    if cache is None or not states:
        return ()
    excess = states[0].attention_mask.shape[1] - cache.get_seq_length()
    return states if excess == 0 else tuple(state.cropped(excess) for state in states)


def write_states(output: Any, states: tuple[CacheState, ...]) -> None:
    """Leave ``states`` on the cache in a model's output (a ``ModelOutput`` or a tuple), if there is one."""
    for value in output if isinstance(output, tuple) else output.values():
        if isinstance(value, Cache):
            setattr(value, _ATTRIBUTE, states)


def selected(cache: Cache, rows: Sequence[int]) -> Cache:
    """A copy of a cache in which sample i is a copy of sample ``rows[i]``."""
    copied: Any = deepcopy(cache)
    copied.batch_select_indices(torch.tensor(rows))
    states = tuple(
        replace(state, attention_mask=state.attention_mask[list(rows)], removed=state.removed[list(rows)])
        for state in read_states(cache)
    )
    if states:
        setattr(copied, _ATTRIBUTE, states)
    result: Cache = copied
    return result
