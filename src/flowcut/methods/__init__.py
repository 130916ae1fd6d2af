"""The methods by name. A new method is one new file and a line here."""

from __future__ import annotations

from .base import Method
from .fastv import FastV
from .flowcut import FlowCut
from .pyramiddrop import PyramidDrop
from .sparsevlm import SparseVLM

METHODS: dict[str, type[Method]] = {method.name: method for method in (FlowCut, FastV, PyramidDrop, SparseVLM)}

__all__ = ["METHODS", "FastV", "FlowCut", "Method", "PyramidDrop", "SparseVLM", "make_method"]


def make_method(name: str, target_num: int | None = None, retain_ratio: float | None = None) -> Method:
    """A method by name with its default hyper-parameters.

    Raises:
        ValueError: unknown name or bad budget.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; known: {', '.join(sorted(METHODS))}.")
    return METHODS[name](target_num=target_num, retain_ratio=retain_ratio)
