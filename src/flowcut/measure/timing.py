"""How long the phases of one ``generate()`` call take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import median
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..models import ModelParts


@dataclass(frozen=True)
class Seconds:
    """Seconds of one ``generate()`` call.

    Attributes:
        tower: inside the vision tower, a method's scoring and cutting there included.
        prefill: the first pass through the language model.
        decoding: everything behind that pass: the head, choosing tokens, the passes for all later tokens.
        rest: what the three leave over: the projector, joining image and text, what ``generate()`` prepares.
        total: the whole call.
    """

    tower: float
    prefill: float
    decoding: float
    rest: float
    total: float

    @classmethod
    def median(cls, runs: list[Seconds]) -> Seconds:
        """The median of every phase, each for itself; in general they do not add up to the median total."""
        return cls(*(median(getattr(run, phase.name) for run in runs) for phase in fields(cls)))


class PhaseTimer:
    """Measures one ``generate()`` call inside a ``with`` block; ``seconds`` holds the result behind it.

    Enter it after a method was attached: its hooks then lie around the method's own, whose work they include.

    Args:
        parts: the model, taken apart.
        device: where the model lies; a CUDA device is waited for at the borders of every phase.
        clock: seconds so far; ``time.process_time`` does not count what other programs of a busy machine take.
        phases: whether phases are told apart. Without, a CUDA device is waited for only where the first token is
            there, and at the end, so that host and device work side by side as they do for a user; ``seconds`` then
            has the total alone.

    Attributes:
        projector: seconds inside the projector; where it is a part of the tower, these count there as well.
        projector_in_tower: those of them.
        first_token: seconds until the first token was chosen and the next one is begun, or the call ended.
    """

    seconds: Seconds

    def __init__(
        self,
        parts: ModelParts,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        *,
        phases: bool = True,
    ) -> None:
        self._parts = parts
        self._device = device
        self._clock = clock
        self._phases = phases
        self._called = 0
        self._in_tower = False
        self._entered_projector = 0.0
        self.projector = 0.0
        self.projector_in_tower = 0.0
        self.first_token = 0.0
        self._handles: list[Any] = []
        self._tower = 0.0
        self._prefill = 0.0
        self._prefill_end: float | None = None
        self._entered = 0.0
        self._begin = 0.0

    def __enter__(self) -> PhaseTimer:
        language_model, projector = self._parts.language_model, self._parts.projector
        self._handles = [language_model.register_forward_pre_hook(self._count_call, prepend=True)]
        self._handles += (
            []
            if not self._phases
            else [
                projector.register_forward_pre_hook(self._enter_projector, prepend=True),
                projector.register_forward_hook(self._leave_projector),
                *[
                    tower.module.register_forward_pre_hook(self._enter_tower, prepend=True)
                    for tower in self._parts.towers
                ],
                *[tower.module.register_forward_hook(self._leave_tower) for tower in self._parts.towers],
                language_model.register_forward_pre_hook(self._enter_language_model, prepend=True),
                language_model.register_forward_hook(self._leave_language_model),
            ]
        )
        self._begin = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if error is None:
            end = self._now()
            total = end - self._begin
            if self._called < 2:
                self.first_token = total
            decoding = end - (end if self._prefill_end is None else self._prefill_end)
            rest = total - self._tower - self._prefill - decoding
            self.seconds = Seconds(self._tower, self._prefill, decoding, rest, total)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def _count_call(self, module: nn.Module, args: Any) -> None:
        self._called += 1
        if self._called == 2:
            self.first_token = self._now() - self._begin

    def _enter_projector(self, module: nn.Module, args: Any) -> None:
        self._entered_projector = self._now()

    def _leave_projector(self, module: nn.Module, args: Any, output: Any) -> None:
        seconds = self._now() - self._entered_projector
        self.projector += seconds
        self.projector_in_tower += seconds if self._in_tower else 0.0

    def _enter_tower(self, module: nn.Module, args: Any) -> None:
        self._in_tower = True
        self._entered = self._now()

    def _leave_tower(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_tower = False
        self._tower += self._now() - self._entered

    def _enter_language_model(self, module: nn.Module, args: Any) -> None:
        if self._prefill_end is None:
            self._entered = self._now()

    def _leave_language_model(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._prefill_end is None:
            self._prefill_end = self._now()
            self._prefill = self._prefill_end - self._entered
