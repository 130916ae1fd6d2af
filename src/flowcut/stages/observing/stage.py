"""What lies on a model while a method is attached."""

from __future__ import annotations

from typing import Any

from .attention import Observation
from .overrides import Override


class Stage:
    """Keeps a method attached to a part of a model until :meth:`close`.

    Attributes:
        handles: of the hooks it laid.
        overrides: of methods and attributes.
        observations: of attention layers.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.overrides: list[Override] = []
        self.observations: list[Observation] = []

    def close(self) -> None:
        """Take everything off again."""
        for handle in self.handles:
            handle.remove()
        for override in reversed(self.overrides):
            override.close()
        for observation in self.observations:
            observation.close()
