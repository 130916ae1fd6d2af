"""The methods by name. A new method is one new file and a line here."""

from __future__ import annotations

from .base import Method
from .cdpruner import CDPruner
from .cls_attention import ClsAttention
from .divprune import DivPrune
from .downsample import Downsample
from .fastv import FastV
from .flowcut import FlowCut
from .naming import read_expression, read_expressions
from .prumerge import PruMerge
from .pyramiddrop import PyramidDrop
from .random import Random
from .scope import Scope
from .sparsevlm import SparseVLM
from .tome import ToMe
from .uniform import Uniform
from .visionzip import VisionZip
from .vispruner import VisPruner

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        FlowCut,
        FastV,
        PyramidDrop,
        SparseVLM,
        VisionZip,
        ToMe,
        PruMerge,
        VisPruner,
        Scope,
        DivPrune,
        CDPruner,
        ClsAttention,
        Random,
        Uniform,
        Downsample,
    )
}

__all__ = [
    "METHODS",
    "CDPruner",
    "ClsAttention",
    "DivPrune",
    "Downsample",
    "FastV",
    "FlowCut",
    "Method",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "Scope",
    "SparseVLM",
    "ToMe",
    "Uniform",
    "VisPruner",
    "VisionZip",
    "make_method",
    "make_methods",
]


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
