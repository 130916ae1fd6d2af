"""torch.compile for choices that are made step by step; off unless somebody asks for it.

A choice of 64 tokens, each depending on the one before, asks a device for several small operations a step. A compiler
joins them. What it is given are pure functions of few tensors that take :data:`STEPS` steps at once, so that compiling
takes seconds, and 64 steps are eight calls.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from types import FunctionType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..errors import FlowCutError

__all__ = ["compile_choices"]

STEPS = 8
"""How many steps are compiled together."""

SHAPES = 8
"""For how many shapes of its inputs a function is compiled."""

VARIABLE = "FLOWCUT_COMPILE_CHOICES"
"""The environment variable that asks for it with ``1``, of any command and the processes that it starts."""

Result = TypeVar("Result")

_lock = threading.Lock()
_wanted = os.environ.get(VARIABLE) == "1"
_compiled: dict[Callable[..., Any], dict[tuple[object, ...], Compiled]] = {}
_full: set[Callable[..., Any]] = set()
"""Functions of which it was said that no further shape is compiled."""


def compile_choices(enabled: bool = True) -> Restoring:
    """Let torch.compile join the small operations of SCOPE, CDPruner, VisPruner and FlowCut+; off by default.

    These methods choose tokens one after the other, and ask a device for 19 to 37% more operations than the uncut
    model in a prefill of LLaVA-1.5's depth; compiled, for at most 15% (docs/speed.md). The first picture of every shape
    then waits for the compiler, for seconds to a minute. A function is compiled for 8 shapes of its inputs; what has
    another is chosen uncompiled, with a warning. So this is for models that see pictures of one size, or of a few.

    It holds for the whole process, whatever is attached, in all threads; the environment variable
    ``FLOWCUT_COMPILE_CHOICES=1`` does the same for a command. Sums are added in another order then: tokens whose scores
    agree in all but the last digits may be ranked differently.

    Args:
        enabled: ``False`` switches it off again.

    Returns:
        What restores the former setting at the end of a ``with`` statement; it can be ignored.

    Raises:
        FlowCutError: this torch cannot compile at all. Where a compiler turns out to be missing or fails, the pass that
            needs it raises the same error.
    """
    global _wanted
    if enabled:
        check_available()
    before, _wanted = _wanted, bool(enabled)
    return Restoring(before)


class Restoring:
    """Puts the setting of :func:`compile_choices` back when its block ends."""

    def __init__(self, before: bool) -> None:
        self.before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _wanted
        _wanted = self.before


def check_available() -> None:
    """Find out whether torch.compile runs here; of compilers only their first use tells.

    Raises:
        FlowCutError: it does not.
    """
    try:
        from torch import _dynamo, _inductor  # noqa: F401

        _dynamo.eval_frame.check_if_dynamo_supported()
    except (ImportError, RuntimeError) as error:
        raise FlowCutError(
            f"Choices cannot be compiled: torch.compile does not work with torch {torch.__version__} as it is "
            f"installed here ({one_line(error)}). Install a complete torch for a Python that it supports, or leave "
            f"compile_choices and {VARIABLE} off."
        ) from error


def run(function: Callable[..., Result], *inputs: Any) -> Result:
    """``function(*inputs)``, compiled where that is wanted."""
    ready = compiled(function, *inputs)
    return function(*inputs) if ready is None else ready(*inputs)


def wanted() -> bool:
    """Whether choices shall be compiled now.

    Not inside of what is compiled already, nor where something watches every operation: counters of kernels and FLOPs
    see the uncompiled form.
    """
    return _wanted and not torch.compiler.is_compiling() and not is_in_torch_dispatch_mode()


def compiled(function: Callable[..., Result], *inputs: Any) -> Callable[..., Result] | None:
    """``function``, compiled for inputs of these shapes; ``None`` where it shall run as it stands.

    That is so where :func:`wanted` says no, and where the function's shapes are used up.

    Args:
        function: a pure function of a module, on tensors and constants, that makes one graph.
        inputs: what it will be called with.
    """
    if not wanted():
        return None
    shape = tuple(described(given) for given in inputs)
    with _lock:
        shapes = _compiled.setdefault(function, {})
        if shape not in shapes and len(shapes) < SHAPES:
            shapes[shape] = Compiled(function)
        ready = shapes.get(shape)
        full = ready is None and function not in _full
        if full:
            _full.add(function)
    if full:
        warnings.warn(
            f"Choices are compiled for {SHAPES} shapes already ({function.__name__}: pictures at once, tokens, width, "
            "with CDPruner the budget); others are made uncompiled. Give pictures of fewer sizes, or switch "
            "compile_choices off.",
            stacklevel=2,
        )
    return ready


def described(given: object) -> object:
    """What of an input the compiled code depends on."""
    return (given.shape, given.stride(), given.dtype, given.device) if isinstance(given, Tensor) else given


class Compiled:
    """A function compiled for one shape of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert isinstance(function, FunctionType)
        self.name, self.used = function.__name__, False
        # Code of its own, as torch counts what it compiled by the code, and refuses to compile it often.
        copied = FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
        )
        check_available()
        self.call: Callable[..., Any] = torch.compile(copied, fullgraph=True, dynamic=False)

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            if self.used:
                return self.call(*inputs)
            try:
                result = self.call(*inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise FlowCutError(
                    f"{self.name} could not be compiled ({one_line(error)}). torch.compile needs a C++ compiler such "
                    "as g++ for a CPU, and Triton for a GPU. Install it, or choose uncompiled: "
                    f"flowcut.compile_choices(False), and {VARIABLE} not set."
                ) from error
            self.used = True
            return result


def one_line(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
