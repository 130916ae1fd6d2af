"""Code that ``torch.compile`` must not look into: what is decided in it differs from call to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def untraced(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """``function``, in front of which a graph that is compiled ends, and behind which the next one begins."""
    return cast("Callable[Parameters, Result]", torch.compiler.disable(function))  # type: ignore[no-untyped-call]
