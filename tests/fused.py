"""How many kernels a compiled function is: the loops that inductor's scheduler makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._inductor import config
from torch.utils._python_dispatch import _disable_current_modes

from flowcut.algorithm import compiling


class Scheduled(Exception):
    """The loops are known: no code has to be made of them."""


def loops_of(function: Callable[..., Any], *inputs: Any) -> int:
    """The loops, and calls of a library, that inductor makes of a function on a CPU.

    On a GPU each is one kernel. Loops that a CPU runs inside of one another count one by one, and a loop over what
    another summed counts for itself; for a GPU inductor joins these, so that there are no more of them.
    """
    loops: list[str] = []

    def scheduled(nodes: list[Any]) -> list[Any]:
        parts = [part for node in nodes for part in getattr(node, "outer_fused_nodes", [node])]
        loops.extend(type(part).__name__ for part in parts if not type(part).__name__.startswith("Nop"))
        raise Scheduled

    torch._dynamo.reset()
    with config.patch(_post_fusion_custom_pass=scheduled), torch.no_grad(), pytest.raises(Exception, match="Scheduled"):
        torch.compile(function, fullgraph=True, dynamic=False)(*inputs)
    assert loops
    return len(loops)


class Loops:
    """Counts the loops of compiled functions, each of which is run as it stands.

    Attributes:
        by_name: how many, by the function's name, over all calls.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, int] = {}
        self._known: dict[tuple[object, ...], int] = {}

    def compiled(self, function: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
        """Takes the place of :func:`flowcut.algorithm.compiling.compiled`."""
        name = function.__name__
        shape = (name, *map(compiling.described, inputs))

        def call(*inputs: Any) -> Any:
            # Hidden from what counts operations.
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                if shape not in self._known:
                    self._known[shape] = loops_of(function, *inputs)
                self.by_name[name] = self.by_name.get(name, 0) + self._known[shape]
                return function(*inputs)

        return call


@contextmanager
def counted_loops() -> Iterator[Loops]:
    """Count in a block what compiled choices would launch; counters of operations see everything else."""
    loops = Loops()
    with pytest.MonkeyPatch.context() as patch:
        for module in [module for name, module in sys.modules.items() if name.startswith("flowcut.")]:
            for name, other in (("compiled", loops.compiled), ("wanted", lambda: True)):
                if getattr(module, name, None) is getattr(compiling, name) and module is not compiling:
                    patch.setattr(module, name, other)
        patch.setattr(compiling, "compiled", loops.compiled)
        yield loops
