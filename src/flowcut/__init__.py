"""FlowCut: training-free visual-token pruning for vision-language models."""

from .attach import Handle, attach, detach, flowcut
from .errors import FlowCutError, NonFiniteError, NotAppliedError, UnsupportedModelError
from .methods import METHODS, FlowCut, Method
from .trace import ImageTrace, SequenceTrace, Trace

__all__ = [
    "METHODS",
    "FlowCut",
    "FlowCutError",
    "Handle",
    "ImageTrace",
    "Method",
    "NonFiniteError",
    "NotAppliedError",
    "SequenceTrace",
    "Trace",
    "UnsupportedModelError",
    "attach",
    "detach",
    "flowcut",
]
