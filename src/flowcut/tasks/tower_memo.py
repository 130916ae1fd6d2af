"""What a vision tower computes of a picture before any method could act on it, kept from one method to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor

from ..checkpoints.loading import LoadedModel
from ..methods import Method
from ..models import find_parts
from ..stages.forward_pass import part_in
from ..stages.observing.overrides import Override
from ..stages.tower.batched_pass import BatchedPass

LIMIT = 2**30
"""Bytes that are kept at most; pictures that come later are encoded anew each time."""


class TowerMemo:
    """Keeps the hidden states in front of the last vision layer that the model reads, inside a ``with`` block.

    Methods that watch that layer alone, or none, then get them for pictures that were encoded before; the layer itself
    runs. Towers that take images of any size, join patches in groups or are read at several depths keep nothing.

    Args:
        loaded: the model.
        limit: bytes.
    """

    def __init__(self, loaded: LoadedModel, limit: int = LIMIT) -> None:
        family, parts = find_parts(loaded.model)
        tower = parts.tower
        usable = tower.packing is None and parts.group == 1 and parts.packer is None and len(parts.towers) == 1
        layers = family.feature_choice(parts, {}).layers if usable else ()
        self.layers = tower.layers[: layers[0] - 1] if len(layers) == 1 else ()
        self.left = limit
        self._states: dict[int, Tensor] = {}
        self._picture: int | None = None
        self._overrides: list[Override] = []

    def __enter__(self) -> TowerMemo:
        self._overrides = [
            Override(layer, "forward", partial(self._run, number)) for number, layer in enumerate(self.layers)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for override in reversed(self._overrides):
            override.close()
        self._states.clear()

    @contextmanager
    def showing(self, picture: int, method: Method | None) -> Iterator[None]:
        """While the block runs, the tower sees picture number ``picture`` alone, with ``method`` attached."""
        self._picture = None if method is not None and method.watches_tower else picture
        try:
            yield
        finally:
            self._picture = None

    def _run(self, number: int, original: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A vision layer's forward."""
        known = None if self._picture is None else self._states.get(self._picture)
        last = number == len(self.layers) - 1
        if known is not None and known.shape == hidden.shape:
            current = part_in(kwargs)
            if isinstance(current, BatchedPass):
                current.skip(number)
            return known if last else hidden
        output = original(hidden, *args, **kwargs)
        if last and self._picture is not None and isinstance(output, Tensor):
            size = output.numel() * output.element_size()
            if size <= self.left:
                self.left -= size
                self._states[self._picture] = output
        return output
