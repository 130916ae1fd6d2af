"""FlowCut: training-free visual-token pruning for vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attaching import Handle, attach, detach, flowcut
    from .errors import FlowCutError, NonFiniteError, NotAppliedError, UnsupportedModelError
    from .methods import (
        METHODS,
        CDPruner,
        ClsAttention,
        DivPrune,
        Downsample,
        FastV,
        FlowCut,
        Method,
        PruMerge,
        PyramidDrop,
        Random,
        Scope,
        SparseVLM,
        ToMe,
        Uniform,
        VisionZip,
        VisPruner,
    )
    from .trace import ImageTrace, SequenceTrace, Trace

__all__ = [
    "METHODS",
    "CDPruner",
    "ClsAttention",
    "DivPrune",
    "Downsample",
    "FastV",
    "FlowCut",
    "FlowCutError",
    "Handle",
    "ImageTrace",
    "Method",
    "NonFiniteError",
    "NotAppliedError",
    "PruMerge",
    "PyramidDrop",
    "Random",
    "Scope",
    "SequenceTrace",
    "SparseVLM",
    "ToMe",
    "Trace",
    "Uniform",
    "UnsupportedModelError",
    "VisPruner",
    "VisionZip",
    "attach",
    "detach",
    "flowcut",
]

_HOMES = {
    "attaching": ("Handle", "attach", "detach", "flowcut"),
    "errors": ("FlowCutError", "NonFiniteError", "NotAppliedError", "UnsupportedModelError"),
    "methods": (
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
    ),
    "trace": ("ImageTrace", "SequenceTrace", "Trace"),
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something that needs them is asked for."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
