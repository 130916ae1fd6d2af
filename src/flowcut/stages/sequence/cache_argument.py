"""The key-value cache among the arguments of a call: the one place that knows what transformers calls it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import Cache
from transformers.masking_utils import create_causal_mask

_OLD = "past_key_values"

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else _OLD
"""What forwards, masks and outputs call it: ``cache``, in transformers before 5.24 ``past_key_values``."""


def cache_in(call: Mapping[str, Any]) -> Cache | None:
    """The cache among the keyword arguments of a call, also under the name that transformers deprecates."""
    cache: Cache | None = call.get(CACHE, call.get(_OLD))
    return cache


def with_current_name(call: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call with the cache, where there is one, under the name :data:`CACHE`."""
    renamed = {name: value for name, value in call.items() if name != _OLD}
    if _OLD in call or CACHE in call:
        renamed[CACHE] = cache_in(call)
    return renamed
