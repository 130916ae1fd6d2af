"""What a cut sequence leaves on its cache object, so that later steps can go on from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import Cache

_ATTRIBUTE = "flowcut_state"


@dataclass(frozen=True)
class CacheState:
    """How the columns of a cut cache relate to the uncut sequence.

    Attributes:
        attention_mask: ``[B, cached]``, 1 for real tokens.
        removed: ``[B]``, columns that each sample lost.
        uncut_length: columns that the caller believes to be cached.
    """

    attention_mask: Tensor
    removed: Tensor
    uncut_length: int

    def cropped_to(self, cached: int) -> CacheState:
        """The state after the last entries were cropped off the cache (assisted decoding does that)."""
        excess = self.attention_mask.shape[1] - cached
        if excess == 0:
            return self
        return replace(self, attention_mask=self.attention_mask[:, :cached], uncut_length=self.uncut_length - excess)


def read_state(cache: Cache | None) -> CacheState | None:
    """The state of a cache whose sequence was cut; ``None`` for any other."""
    state: CacheState | None = getattr(cache, _ATTRIBUTE, None)
    return state if state is None or cache is None else state.cropped_to(cache.get_seq_length())


def write_state(output: Any, state: CacheState) -> None:
    """Leave ``state`` on the cache in a model's output (a ``ModelOutput`` or a tuple), if there is one."""
    for value in output if isinstance(output, tuple) else output.values():
        if isinstance(value, Cache):
            setattr(value, _ATTRIBUTE, state)
