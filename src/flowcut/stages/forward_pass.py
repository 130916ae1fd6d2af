"""One forward pass of an attached model: what its hooks know, in one object with one lifetime.

A :class:`ForwardPass` begins with the outermost call that concerns it (``forward`` of the model or of its base,
``get_image_features`` called by itself, the prefill of ``generate()``) and ends when that call returns or raises. Its
*parts* are the tower at work and the language model at work; they see q, k and v and decide what is cut. A part also
travels with the data, as a keyword argument through the layers, so that a layer which is computed again in the backward
pass, when the forward pass is long over, repeats its cut instead of deciding anew.

Two context variables, so that passes in several threads never meet:

* ``_at_work`` holds the pass, for the hooks that no keyword reaches: packing, merging, injection, loss, outputs.
* ``_part`` holds the part whose layer is running, for what runs inside a layer: attention functions, projections, MLPs;
  in the backward pass there is a part again, but no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..trace import CacheState, ImageTrace, Stretch
from .observing.overrides import Override

PART_KEYWORD = "flowcut_part"
"""The keyword argument with which a part travels through the layers it watches."""


class Part(Protocol):
    """A tower or a language model in one pass, as its attention layers need to know it."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Look at one layer's q, k, v (``[B, H, S, D]``) and return the mask its attention must use."""

    def narrowing(self, layer: int) -> Any:
        """The tokens whose attention is needed at all (a ``Narrowing``), or ``None`` where every token's is."""


@dataclass(eq=False)
class ForwardPass:
    """What is known during one forward pass.

    Attributes:
        owner: the attachment it belongs to, a token of its own: an object that does not keep the model alive.
        options: arguments of the ``get_image_features`` (or ``get_video_features``) call at work, else empty.
        images: what became of the images of that call, once the tower is through.
        encoded: images that came encoded with the call, by modality, as they were in front of every wrapper.
        recounted: the cache of a prefill that tells its uncut length until the model is called, else ``None``.
        stretches: the columns that each run of decoder layers sees, once the prompts passed the gate; empty where it
            let them pass untouched.
        after: where nothing is left to be dropped, the states that the pass leaves on its cache.
        decoder: the language model, where something is cut inside it.
        outputs: what the base model put out, as the head behind it needs to know it, where something was cut.
        module: the module whose call began the pass and will end it; ``None`` before that call.
        announced: the module whose hooks saw a call that its ``forward`` has not begun yet.
    """

    owner: object
    options: dict[str, Any] = field(default_factory=dict)
    images: list[ImageTrace] = field(default_factory=list)
    encoded: dict[str, Any] = field(default_factory=dict)
    recounted: Override | None = None
    stretches: list[Stretch] = field(default_factory=list)
    after: tuple[CacheState, ...] = ()
    decoder: Any = None
    outputs: Any = None
    module: nn.Module | None = None
    announced: nn.Module | None = None
    _token: Token[ForwardPass | None] | None = None


_at_work: ContextVar[ForwardPass | None] = ContextVar("flowcut_pass", default=None)
_part: ContextVar[Part | None] = ContextVar("flowcut_part", default=None)


@dataclass
class _Traced:
    """The running part while torch.compile traces a tower: it cannot follow a context variable that is set inside.

    Only one thread traces at a time, and nothing of it is left in what it compiles.
    """

    part: Part | None = None


_traced = _Traced()


def at_work(owner: object = None) -> ForwardPass | None:
    """The pass at work in this thread; with ``owner``, only one that belongs to it."""
    current = _at_work.get()
    return current if current is None or owner is None or current.owner is owner else None


def begin(owner: object) -> ForwardPass:
    """Begin a pass; :func:`end` must follow, whatever happens."""
    current = ForwardPass(owner)
    current._token = _at_work.set(current)
    return current


def end(current: ForwardPass) -> None:
    """End a pass; the one around it, if there is any, is at work again."""
    if current._token is not None:
        _at_work.reset(current._token)
        current._token = None


@contextmanager
def joined(owner: object) -> Iterator[ForwardPass]:
    """The pass of ``owner`` at work, or a new one that ends with the block."""
    current = at_work(owner)
    if current is not None:
        yield current
        return
    current = begin(owner)
    try:
        yield current
    finally:
        end(current)


def part_in(kwargs: dict[str, Any]) -> Part | None:
    """The part that a layer or module runs for: the one among its keyword arguments, else the one running around it."""
    part: Part | None = kwargs.get(PART_KEYWORD)
    return running_part() if part is None else part


def running_part() -> Part | None:
    """The part whose tower or layer is running in this thread."""
    if torch.compiler.is_compiling() and _traced.part is not None:
        return _traced.part
    return _part.get()


@contextmanager
def running(part: Part | None) -> Iterator[None]:
    """While the block runs, it runs for ``part``."""
    if torch.compiler.is_compiling():
        around, _traced.part = _traced.part, part
        try:
            yield
        finally:
            _traced.part = around
        return
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def run_layer(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward of a watched layer: what runs inside finds its part, and the keyword goes no further."""
    part = part_in(kwargs)
    kwargs.pop(PART_KEYWORD, None)
    if part is None:
        # As in a step of decoding, which may be compiled.
        return original(*args, **kwargs)
    with running(part):
        return original(*args, **kwargs)
