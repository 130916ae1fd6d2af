"""A layer that is computed again runs for the part it ran for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from flowcut.stages.forward_pass import running, running_part
from flowcut.stages.observing.checkpointing import CHECKPOINT, follow_checkpointing


class SomePart:
    """Stands for a tower in one pass."""

    def attend(self, *args: Any) -> None:
        """Not asked here."""

    def narrowing(self, layer: int) -> None:
        """Not asked here."""


def test_what_is_computed_later_finds_the_part_that_was_running() -> None:
    layer, kept = nn.Identity(), []

    def keep(function: Callable[..., Any], *args: Any) -> Any:
        kept.append(function)
        return function(*args)

    vars(layer)[CHECKPOINT] = keep
    (override,) = follow_checkpointing([layer, nn.Identity()])
    assert follow_checkpointing([layer]) == []
    part = SomePart()
    with running(part):
        assert vars(layer)[CHECKPOINT](running_part) is part
    assert running_part() is None and kept[0]() is part
    override.close()
    assert vars(layer)[CHECKPOINT] is keep
