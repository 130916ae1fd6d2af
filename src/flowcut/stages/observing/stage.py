"""What lies on a model while a method is attached."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NoReturn

from ...errors import FlowCutError
from .attention import Observation
from .overrides import Override

HANDLE = "_flowcut_handle"
"""Attribute of an attached model's base module."""


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

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        """The stage of a deep copy of the model."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: hooks of transformers on the same layers cannot be.

        Raises:
            FlowCutError: says what to do.
        """
        raise FlowCutError(
            "A model cannot be pickled (torch.save of the whole model, multiprocessing) while a method is attached. "
            "Use detach(model) before and attach again behind it; save_pretrained and state_dict work while attached."
        )
