"""An efficiency report beside accuracy: what answering cost, summed over calls and processes.

A :class:`Recorder` stands around ``generate()`` while questions are answered. It leaves the first call out (warm-up),
and at some calls answers the same batch once more with nothing attached, before or after in turns: only such pairs
are compared, so that a machine that slows down slows both.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ..attaching import Handle, attach
from ..errors import FlowCutError
from ..methods import FlowCut, Method
from ..models import find_parts
from ..trace import Trace
from .call_timer import CallCosts, CallTimer

PACKAGES = ("flowcut", "torch", "transformers", "accelerate", "lmms-eval", "flash-attn")
"""Whose versions a report names, where they are installed."""

PHASES = ("preprocessing", "tower", "projector", "prefill", "first_token", "total")
"""The seconds of a pair."""


@dataclass(frozen=True)
class Counts:
    """Tokens and FLOPs of some questions, summed; see :class:`~flowcut.measure.run.Outcome` for what each counts."""

    questions: int
    visual_tokens: int
    visual_tokens_mean: float
    kv_entries: float
    flops_tower: int
    flops_projector: int
    flops_prefill: int


def counts_of(trace: Trace) -> tuple[Counts, Counts] | None:
    """What the questions of the last pass count uncut, and as they were; ``None`` where no image went through."""
    sequence = trace.sequence
    if sequence is None or not trace.images:
        return None
    entering = sum(image.placeholders for image in trace.images)
    questions = len(sequence.visual_tokens)
    uncut = Counts(
        questions,
        entering,
        float(entering),
        float(sequence.uncut_attended.sum()),
        *(sum(getattr(one, phase) for one in sequence.uncut_flops) for phase in ("tower", "projector", "prefill")),
    )
    cut = Counts(
        questions,
        sum(sequence.visual_tokens),
        sum(sequence.visual_tokens_mean),
        sum(sequence.kv_entries),
        *(sum(getattr(one, phase) for one in sequence.flops) for phase in ("tower", "projector", "prefill")),
    )
    return uncut, cut


@dataclass
class Totals:
    """Sums over calls; of ``peak_bytes`` the largest.

    Attributes:
        calls: how many, without the first of each process.
        questions: answered by them.
        new_tokens: generated in all answers, end tokens included.
        later_steps: passes behind the first of each call.
        preprocessing: seconds from the end of the call before until ``generate()`` began: reading pictures, writing
            prompts, the processor, moving to the device, and what the caller does in between.
        tower, projector, prefill, first_token, total, cache_bytes, peak_bytes: see
            :class:`~flowcut.measure.call_timer.CallCosts`.
        counts: of the questions whose tokens were counted.
    """

    calls: int = 0
    questions: int = 0
    new_tokens: int = 0
    later_steps: int = 0
    preprocessing: float = 0.0
    tower: float = 0.0
    projector: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    total: float = 0.0
    cache_bytes: int = 0
    peak_bytes: int = 0
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0.0, 0.0, 0, 0, 0))

    def add(self, costs: CallCosts, preprocessing: float, rows: int, length: int, new_tokens: int) -> None:
        """Count one call that gave ``rows`` answers of at most ``length`` tokens, ``new_tokens`` in all."""
        more = Totals(1, rows, new_tokens, max(0, length - 1), preprocessing, **asdict(costs))
        self.merge(more)

    def count(self, counts: Counts) -> None:
        """Count tokens."""
        self.counts = summed(self.counts, counts)

    def merge(self, other: Totals) -> None:
        """Add what another process measured."""
        for one in fields(self):
            mine, its = getattr(self, one.name), getattr(other, one.name)
            if one.name == "counts":
                self.count(its)
            else:
                setattr(self, one.name, max(mine, its) if one.name == "peak_bytes" else mine + its)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Totals:
        """Read what ``asdict`` wrote."""
        return cls(**{**stored, "counts": Counts(**stored["counts"])})


def summed(one: Counts, other: Counts) -> Counts:
    """Both together."""
    return Counts(*(getattr(one, part.name) + getattr(other, part.name) for part in fields(Counts)))


def doubling(call: int) -> bool:
    """Whether a call is paired by default: 1, 2, 4, 8, ... so that few are, spread over any number of calls."""
    return call > 0 and call & (call - 1) == 0


class Recorder:
    """Stands around the ``generate()`` calls of a row; attaches the row's method.

    Args:
        model: the model, with nothing attached.
        method: what to attach; ``None`` for the uncut model, whose tokens are then counted at the paired calls, by an
            extra pass of one token.
        paired: whether the call of a number, counted from 0, is answered uncut as well; ``None`` for none.

    Attributes:
        totals: of all calls but the first.
        pairs: for every paired call its seconds uncut and cut, by the names in ``PHASES``.
        uncounted: why an uncut model's tokens could not be counted; empty where they could.
    """

    def __init__(
        self, model: nn.Module, method: Method | None, paired: Callable[[int], bool] | None = doubling
    ) -> None:
        _, self.parts = find_parts(model)
        self.model = model
        self.method = method
        self.paired = paired
        self.totals = Totals()
        self.pairs: list[tuple[dict[str, float], dict[str, float]]] = []
        self.uncounted = ""
        self.calls = 0
        self.handle: Handle | None = None if method is None else attach(model, method)
        self.started = time.perf_counter()

    def start(self) -> None:
        """Begin to measure the next call's preprocessing now; without it, it begins where the last call ended."""
        self.started = time.perf_counter()

    def generate(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)``, the model's ``generate``, and measure it.

        Args:
            function: returns ids ``[rows, prompt + new]``, or an output that has them as ``sequences``.
        """
        preprocessing = time.perf_counter() - self.started
        call, self.calls = self.calls, self.calls + 1
        chosen = self.paired is not None and (call == 0 or self.paired(call))
        pair = chosen and self.method is not None
        uncut_first = pair and len(self.pairs) % 2 == 1
        uncut = self._uncut(function, *args, **kwargs) if uncut_first else None
        with CallTimer(self.parts, self._device) as timer:
            output = function(*args, **kwargs)
        if call:
            self._add(timer.costs, preprocessing, output, kwargs)
        if pair and not uncut_first:
            uncut = self._uncut(function, *args, **kwargs)
        if call and uncut is not None:
            self.pairs.append((seconds_of(uncut, preprocessing), seconds_of(timer.costs, preprocessing)))
        if chosen and self.method is None:
            self._probe(function, *args, **kwargs)
        self.started = time.perf_counter()
        return output

    def close(self) -> None:
        """Take the method off."""
        if self.handle is not None:
            self.handle.detach()

    def as_dict(self, **environment: Any) -> dict[str, Any]:
        """What was measured, for JSON, with what it was measured on."""
        return {
            "environment": {**environment_of(self.model, self._device), **environment},
            "totals": asdict(self.totals),
            "pairs": [list(pair) for pair in self.pairs],
            "uncounted": self.uncounted,
        }

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _add(self, costs: CallCosts, preprocessing: float, output: Any, kwargs: dict[str, Any]) -> None:
        ids = getattr(output, "sequences", output)
        prompt = 0 if kwargs.get("input_ids") is None else kwargs["input_ids"].shape[1]
        new = ids[:, prompt:]
        self.totals.add(costs, preprocessing, len(ids), new.shape[1], tokens_until_the_end(new, self.model))
        counted = counts_of(self.handle.trace) if self.handle is not None else None
        if counted is not None:
            self.totals.count(counted[1])

    def _uncut(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> CallCosts:
        """The same call with nothing attached; sampled answers are not changed by it."""
        with self._taken_off(), same_random_numbers(self._device), CallTimer(self.parts, self._device) as timer:
            function(*args, **kwargs)
        return timer.costs

    @contextmanager
    def _taken_off(self) -> Iterator[None]:
        assert self.method is not None
        self.close()
        try:
            yield
        finally:
            self.handle = attach(self.model, self.method)

    def _probe(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Count an uncut model's tokens, from the trace of a pass in which they were cut."""
        try:
            with same_random_numbers(self._device), attach(self.model, FlowCut(retain_ratio=1 / 9)) as handle:
                function(*args, **{**kwargs, "max_new_tokens": 1})
                counted = counts_of(handle.trace)
        except (FlowCutError, ValueError) as error:
            self.uncounted = str(error)
            return
        if counted is not None:
            self.totals.count(counted[0])


def seconds_of(costs: CallCosts, preprocessing: float) -> dict[str, float]:
    """The seconds of one side of a pair."""
    return {name: preprocessing if name == "preprocessing" else getattr(costs, name) for name in PHASES}


def tokens_until_the_end(new: torch.Tensor, model: Any) -> int:
    """Tokens in the answers ``[rows, new]``, in each up to its first end token, which counts."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return new.numel()
    is_end = torch.isin(new, torch.as_tensor(ends, device=new.device).flatten())
    before = is_end.cumsum(dim=1) - is_end.long()
    return int((before == 0).sum())


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Random numbers that are drawn inside the block are drawn again behind it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def environment_of(model: Any, device: torch.device) -> dict[str, Any]:
    """Device, dtype, attention and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config._attn_implementation),
        "versions": dict(installed_versions(PACKAGES)),
    }


def installed_versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and version of those packages that are installed."""
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
