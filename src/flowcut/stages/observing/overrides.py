"""Replacing a method on one instance, and putting things back exactly as they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any


class Override:
    """Shadows ``instance.name`` with ``function(original, *args, **kwargs)`` until :meth:`close`.

    Args:
        instance: the object; its class is not touched.
        name: the method or attribute to shadow.
        function: called with the original in front of the caller's arguments.
        slot: the instance attribute that holds the value, where it differs from ``name`` (properties).
        default: the original of an instance without such a method.
    """

    def __init__(
        self,
        instance: Any,
        name: str,
        function: Callable[..., Any],
        slot: str | None = None,
        default: Callable[..., Any] | None = None,
    ) -> None:
        self.instance = instance
        self.slot = slot or name
        self.had_own = self.slot in vars(instance)
        original = getattr(instance, name) if default is None else getattr(instance, name, default)
        self.before = vars(instance).get(self.slot)
        self.replacement = update_wrapper(partial(function, original), original)
        vars(instance)[self.slot] = self.replacement

    def close(self) -> None:
        """Restore what was there; something laid over it later (an accelerate hook) is left in place."""
        self.restore(self.instance)

    def restore(self, instance: Any) -> None:
        """As :meth:`close`, on a replica of the instance, which has a copy of its attributes."""
        attributes = vars(instance)
        if attributes.get(self.slot) is not self.replacement:
            return
        if self.had_own:
            attributes[self.slot] = self.before
        else:
            del attributes[self.slot]
