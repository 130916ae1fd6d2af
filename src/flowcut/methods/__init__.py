"""The methods by name. A new method is one new file and a line here."""

from __future__ import annotations

from .base import Method
from .cdpruner import CDPruner
from .cls_attention import ClsAttention
from .divprune import DivPrune
from .downsample import Downsample
from .fastv import FastV
from .flowcut import FlowCut
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
]


def make_method(name: str, target_num: int | None = None, retain_ratio: float | None = None) -> Method:
    """A method by name with its default hyper-parameters.

    Raises:
        ValueError: unknown name or bad budget.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; known: {', '.join(sorted(METHODS))}.")
    return METHODS[name](target_num=target_num, retain_ratio=retain_ratio)
