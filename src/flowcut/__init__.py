"""FlowCut: training-free visual-token pruning for vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "2.0.0"

_HOMES = (
    "errors",
    "algorithm.compiling",
    "trace",
    "attaching",
    "observing",
    "encoding",
    "methods",
    "checkpoints.remembering",
)
"""The modules whose ``__all__`` is public here."""

if TYPE_CHECKING:
    # isort: off
    from .methods import *  # first, as it has a module with the name of the function flowcut
    from .algorithm.compiling import *
    from .attaching import *
    from .observing import *
    from .encoding import *
    from .checkpoints.remembering import *
    from .errors import *
    from .trace import *
else:

    def __getattr__(name):
        """Import torch and transformers only when something that needs them is asked for."""
        from importlib import import_module

        if name == "__all__":
            return sorted(public for home in _HOMES for public in import_module(f".{home}", __name__).__all__)
        if not name.startswith("_"):
            for home in _HOMES:
                module = import_module(f".{home}", __name__)
                if name in module.__all__:
                    value = globals()[name] = getattr(module, name)
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
