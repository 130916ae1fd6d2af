"""What one ``generate()`` call takes: seconds of its phases, bytes of its cache, peak memory.

For reports beside accuracy tables, where calls are batches and nothing may be left out. The clock is that of
:mod:`.timing`, the memory that of :mod:`.peak`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..models import ModelParts
from ..stages.sequence.cache_argument import CACHE
from .peak import PeakMemory
from .timing import PhaseTimer


@dataclass(frozen=True)
class CallCosts:
    """One ``generate()`` call.

    Attributes:
        tower: seconds inside the vision towers, a method's scoring and cutting there included, projector left out.
        projector: seconds inside the projector.
        prefill: seconds of the first pass through the language model.
        first_token: seconds from the call's beginning until the first new token was chosen and the next one is begun.
        total: seconds of the whole call.
        cache_bytes: bytes of keys and values in the cache after prefill, padding included.
        peak_bytes: the most memory during the call: allocated on a CUDA device, elsewhere resident in the process, as
            Linux counts it; 0 where neither can be read.
    """

    tower: float
    projector: float
    prefill: float
    first_token: float
    total: float
    cache_bytes: int
    peak_bytes: int


class CallTimer:
    """Measures one ``generate()`` call inside a ``with`` block; ``costs`` holds the result behind it.

    Enter it after a method was attached, so that its hooks lie around the method's own. A CUDA device is waited for at
    the borders of every phase.

    Args:
        parts: the model, taken apart.
        device: where the model lies.
    """

    costs: CallCosts

    def __init__(self, parts: ModelParts, device: torch.device) -> None:
        self._language_model = parts.language_model
        self._timer = PhaseTimer(parts, device, time.perf_counter)
        self._peak = PeakMemory(device)
        self._cache_bytes: int | None = None

    def __enter__(self) -> CallTimer:
        self._peak.__enter__()
        self._timer.__enter__()
        self._hook = self._language_model.register_forward_hook(self._read_cache)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hook.remove()
        self._timer.__exit__(kind, error, traceback)
        self._peak.__exit__(kind, error, traceback)
        if error is None:
            timer, seconds = self._timer, self._timer.seconds
            self.costs = CallCosts(
                tower=seconds.tower - timer.projector_in_tower,
                projector=timer.projector,
                prefill=seconds.prefill,
                first_token=timer.first_token,
                total=seconds.total,
                cache_bytes=self._cache_bytes or 0,
                peak_bytes=self._peak.most or 0,
            )

    def _read_cache(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._cache_bytes is None:
            self._cache_bytes = bytes_held(getattr(output, CACHE, None))


def bytes_held(cache: Any) -> int:
    """Bytes of all keys and values in a cache; 0 without one."""
    states = (state for layer in getattr(cache, "layers", ()) for state in (layer.keys, layer.values))
    return sum(state.numel() * state.element_size() for state in states if state is not None)
