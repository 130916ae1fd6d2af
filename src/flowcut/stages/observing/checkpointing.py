"""Gradient checkpointing: a layer that is computed again in the backward pass finds the part it ran for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from ..forward_pass import Part, running, running_part
from .overrides import Override

CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute of transformers' layers that calls them, or their forward, under gradient checkpointing."""


def follow_checkpointing(layers: Iterable[nn.Module]) -> list[Override]:
    """Override the checkpointing of ``layers`` where that is switched on, and not overridden yet."""
    functions = ((layer, vars(layer).get(CHECKPOINT)) for layer in layers)
    return [
        Override(layer, CHECKPOINT, run_again)
        for layer, function in functions
        if function is not None and getattr(function, "func", None) is not run_again
    ]


def run_again(original: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """A layer's checkpointing: ``function`` is computed, now and again later, for the part that runs now."""
    return original(partial(_run_for, running_part(), function), *args)


def _run_for(part: Part | None, function: Callable[..., Any], *args: Any) -> Any:
    with running(part):
        return function(*args)
