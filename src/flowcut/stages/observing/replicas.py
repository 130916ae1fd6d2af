"""Replicas that ``nn.DataParallel`` makes of an attached model for every forward pass.

A replica's modules have copies of their originals' attributes, overrides among them, and share their hooks: all of them
would run the original's layers. What belongs to the attachment comes off a replica, so that it can be attached anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...errors import FlowCutError
from .attention import SEAT, Observation
from .overrides import Override

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Attributes in which a module keeps its forward hooks."""


def check_replica(module: nn.Module) -> None:
    """Make sure that a module with hooks of another one is a replica, whose submodules are replicas too.

    Raises:
        FlowCutError: it is a shallow copy.
    """
    if not getattr(module, "_is_replica", False):
        raise FlowCutError(
            f"This {type(module).__name__} is a shallow copy of an attached model, with which it shares its layers and "
            "hooks. Use copy.deepcopy, or attach to the copy's own layers."
        )


def strip_replica(
    original: nn.Module,
    replica: nn.Module,
    handles: Iterable[Any],
    overrides: Iterable[Override],
    observations: Iterable[Observation],
) -> None:
    """Take what belongs to the attachment of ``original`` off ``replica``; the original stays attached."""
    pairs = list(zip(original.modules(), replica.modules(), strict=True))
    ours = {handle.id for handle in handles}
    for _, module in pairs:
        for name in HOOKS:
            hooks = vars(module)[name]
            vars(module)[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key not in ours)
    replica_of = {id(module): copied for module, copied in pairs}
    for override in overrides:
        if id(override.instance) in replica_of:
            override.restore(replica_of[id(override.instance)])
    for observation in observations:
        for module, config in zip(observation.modules, observation.configs, strict=True):
            copied: Any = replica_of[id(module)]
            copied.config = config
            vars(copied).pop(SEAT, None)
