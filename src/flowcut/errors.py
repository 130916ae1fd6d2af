"""What can go wrong. Every message says what was given, what is allowed and what to do."""

from __future__ import annotations

__all__ = ["FlowCutError", "NonFiniteError", "NotAppliedError", "UnsupportedModelError"]


class FlowCutError(RuntimeError):
    """Base of every error flowcut raises on its own account (bad values raise ``ValueError``)."""


class UnsupportedModelError(FlowCutError):
    """The model, its vision tower or its attention implementation cannot be served; nothing was attached."""


class NotAppliedError(FlowCutError):
    """An image went through an attached model, but the method did not get to act on it."""


class NonFiniteError(FlowCutError):
    """The model's own activations hold NaN or infinity, so its tokens cannot be ranked."""
