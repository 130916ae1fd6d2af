"""The methods by name. A new method is one new file and its line here; the rest of the package finds it by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Method as Method
from .naming import read_expression, read_expressions

# isort: off
# In the order in which they are listed: FlowCut, what it is compared with, controls.
from .flowcut import FlowCut as FlowCut
from .flowcut_plus import FlowCutPlus as FlowCutPlus
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
    __all__ = ["METHODS", "Method", "make_method", "make_methods", *(method.__name__ for method in METHODS.values())]


def make_method(expression: str, target_num: int | None = None, retain_ratio: float | None = None) -> Method:
    """A method by name, with its default hyper-parameters but for those that are given.

    Args:
        expression: a name, or a name with settings, such as ``flowcut(history=0.7,cut_every=none)``.
        target_num, retain_ratio: its budget, see :class:`Method`; one in the expression goes before them.

    Raises:
        ValueError: unknown name or setting, a value that is not allowed, or a bad budget.
    """
    return read_expression(expression, METHODS).build(target_num, retain_ratio)


def make_methods(expressions: str, target_num: int | None = None, retain_ratio: float | None = None) -> list[Method]:
    """Several methods separated by commas, each as :func:`make_method` makes it; the same one twice counts once."""
    return [one.build(target_num, retain_ratio) for one in read_expressions(expressions, METHODS)]
