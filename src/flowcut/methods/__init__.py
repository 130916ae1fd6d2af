"""The methods by name. A new method is one new file and its line here; the rest of the package finds it by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Method as Method

# isort: off
# In the order in which they are listed: FlowCut, what it is compared with, controls.
from .flowcut import FlowCut as FlowCut
from .fastv import FastV as FastV
from .pyramiddrop import PyramidDrop as PyramidDrop
from .sparsevlm import SparseVLM as SparseVLM
from .visionzip import VisionZip as VisionZip
from .tome import ToMe as ToMe
from .prumerge import PruMerge as PruMerge
from .vispruner import VisPruner as VisPruner
from .scope import Scope as Scope
from .divprune import DivPrune as DivPrune
from .cdpruner import CDPruner as CDPruner
from .cls_attention import ClsAttention as ClsAttention
from .random import Random as Random
from .uniform import Uniform as Uniform
from .downsample import Downsample as Downsample
# isort: on

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in tuple(globals().values())
    if isinstance(method, type) and issubclass(method, Method) and method is not Method
}
"""Every method above by its name, in that order."""

if not TYPE_CHECKING:  # type checkers read the imports above, which need no list beside them
    __all__ = ["METHODS", "Method", "make_method", *(method.__name__ for method in METHODS.values())]


def make_method(name: str, target_num: int | None = None, retain_ratio: float | None = None) -> Method:
    """A method by name with its default hyper-parameters.

    Raises:
        ValueError: unknown name or bad budget.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; known: {', '.join(sorted(METHODS))}.")
    return METHODS[name](target_num=target_num, retain_ratio=retain_ratio)
