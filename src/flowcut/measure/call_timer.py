"""What one ``generate()`` call takes: seconds of its phases, bytes of its cache, peak memory.

For reports beside accuracy tables, where calls are batches and nothing may be left out:
:class:`~flowcut.measure.timing.PhaseTimer` measures the phases of single questions.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..models import ModelParts
from ..stages.sequence.cache_argument import CACHE


@dataclass(frozen=True)
class CallCosts:
    """One ``generate()`` call.

    Attributes:
        tower: seconds inside the vision towers, a method's scoring and cutting there included, projector left out.
        projector: seconds inside the projector.
        prefill: seconds of the first pass through the language model.
        first_token: seconds from the call's beginning until the logits of the first new token were there.
        total: seconds of the whole call.
        cache_bytes: bytes of keys and values in the cache after prefill, padding included.
        peak_bytes: the most memory that was allocated on a CUDA device during the call; elsewhere the largest resident
            set that the process ever had, which cannot be reset; 0 where neither can be read.
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
        self._parts = parts
        self._device = device
        self._handles: list[Any] = []
        self._entered: list[float] = []
        self._inner = 0.0
        self._tower = 0.0
        self._projector = 0.0
        self._prefill: float | None = None
        self._first: float | None = None
        self._cache_bytes = 0

    def __enter__(self) -> CallTimer:
        parts = self._parts
        self._handles = [
            *(handle for tower in parts.towers for handle in self._around(tower.module, self._leave_tower)),
            *self._around(parts.projector, self._leave_projector),
            *self._around(parts.language_model, self._leave_language_model),
            parts.top.register_forward_hook(self._leave_top),
        ]
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begin = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is None:
            total = self._now() - self._begin
            self.costs = CallCosts(
                tower=self._tower,
                projector=self._projector,
                prefill=self._prefill or 0.0,
                first_token=total if self._first is None else self._first - self._begin,
                total=total,
                cache_bytes=self._cache_bytes,
                peak_bytes=peak_bytes(self._device),
            )

    def _around(self, module: nn.Module, leave: Any) -> list[Any]:
        enter = module.register_forward_pre_hook(self._enter, prepend=True)
        return [enter, module.register_forward_hook(leave)]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._entered.append(self._now())

    def _leave_tower(self, module: nn.Module, args: Any, output: Any) -> None:
        self._tower += self._now() - self._entered.pop() - self._inner
        self._inner = 0.0

    def _leave_projector(self, module: nn.Module, args: Any, output: Any) -> None:
        seconds = self._now() - self._entered.pop()
        self._projector += seconds
        if self._entered:  # Qwen's towers end with their projector
            self._inner += seconds

    def _leave_language_model(self, module: nn.Module, args: Any, output: Any) -> None:
        entered = self._entered.pop()
        if self._prefill is None:
            self._prefill = self._now() - entered
            self._cache_bytes = bytes_held(getattr(output, CACHE, None))

    def _leave_top(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._first is None and self._prefill is not None:
            self._first = self._now()


def bytes_held(cache: Any) -> int:
    """Bytes of all keys and values in a cache; 0 without one."""
    states = (state for layer in getattr(cache, "layers", ()) for state in (layer.keys, layer.values))
    return sum(state.numel() * state.element_size() for state in states if state is not None)


def peak_bytes(device: torch.device) -> int:
    """See :class:`CallCosts`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
