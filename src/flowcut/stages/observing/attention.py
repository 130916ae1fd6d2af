"""Seeing q, k and v of an attention layer, on one model instance, whatever implementation computes it.

Attention modules of transformers look their implementation up by the name in their ``config``. Here a wrapper
is registered under a name of our own (it contains the wrapped name, so that tests for ``"flash"`` keep
working), and the observed modules, and only they, get a copy of their config that carries that name. The copy
and the registry entry disappear when the last observation ends.
"""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import UnsupportedModelError
from ..forward_pass import running_part

REGISTERED = "flowcut_"
SEAT = "_flowcut_seat"

_users: Counter[str] = Counter()
_registry_lock = threading.Lock()


def observable_implementations() -> list[str]:
    """Names of the attention implementations whose layers can be observed."""
    known = (name for name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith(REGISTERED))
    return sorted({"eager", *known})


def observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The registered wrapper: shows q, k, v to the part at work, then calls the configured implementation."""
    seat: Seat = module.__dict__[SEAT]
    current = running_part()
    if current is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        attention_mask = current.attend(seat.layer, query, key, value, scaling, attention_mask)
        needed = current.narrowing(seat.layer)
        # With a mask, implementations differ in how they tell queries from keys.
        if needed is not None and attention_mask is None and seat.narrows:
            narrow = needed.narrow(query.transpose(1, 2)).transpose(1, 2)
            output, weights = seat.implementation(module, narrow, key, value, None, **kwargs)
            return needed.in_front_of(output, query.shape[2]), weights
    return seat.implementation(module, query, key, value, attention_mask, **kwargs)


class Seat:
    """What an observed attention module carries.

    Attributes:
        layer: its index.
        implementation: the attention function behind the wrapper.
        narrows: whether that function may be called for some queries only (eager returns the map of all).
    """

    def __init__(self, layer: int, implementation: Callable[..., tuple[Tensor, Tensor | None]], narrows: bool) -> None:
        self.layer = layer
        self.implementation = implementation
        self.narrows = narrows


class Observation:
    """Watches the attention modules of one tower until :meth:`close`.

    Args:
        modules: attention modules, in the order of their layers; each has a ``config``.
        layers: the index of each module's layer; 0, 1, 2... by default.

    Raises:
        UnsupportedModelError: their attention implementation cannot be observed; nothing was changed.
    """

    def __init__(self, modules: Sequence[nn.Module], layers: Sequence[int] | None = None) -> None:
        self.modules = list(modules)
        self.layers = list(range(len(modules)) if layers is None else layers)
        self.configs: list[Any] = [module.config for module in modules]
        self.name = ""
        self._open()

    @property
    def config(self) -> Any:
        """The tower's own config, as it was found."""
        return self.configs[0]

    def refresh(self) -> None:
        """Follow a change of implementation made by ``set_attn_implementation`` while attached."""
        if (self.config._attn_implementation or "eager") != self.name:
            self.close()
            self._open()

    def close(self) -> None:
        """Give every module its own config back and drop the registry entry if nobody else uses it."""
        for module, config in zip(self.modules, self.configs, strict=True):
            module.config = config
            module.__dict__.pop(SEAT, None)
        self._release()

    def _open(self) -> None:
        name = self.config._attn_implementation or "eager"
        functions = [implementation_of(module, name) for module in self.modules]
        self.name = name
        self._release = register(self, name)
        for number, (module, config) in enumerate(zip(self.modules, self.configs, strict=True)):
            observed = copy.copy(config)
            observed._attn_implementation_internal = REGISTERED + name
            module.config = observed
            module.__dict__[SEAT] = Seat(self.layers[number], functions[number], name != "eager")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_release"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A deep copy is one more user of the registry entry."""
        self.__dict__.update(state)
        self._release = register(self, self.name)


def register(user: Observation, name: str) -> Callable[[], Any]:
    """Register the wrapper of ``name`` for one more user, until the result is called or the user is gone."""
    with _registry_lock:
        _users[name] += 1
        ALL_ATTENTION_FUNCTIONS[REGISTERED + name] = observed_attention
    return weakref.finalize(user, unregister, name)


def unregister(name: str) -> None:
    """One user less of the wrapper of ``name``; the last one takes its registry entry along."""
    with _registry_lock:
        _users[name] -= 1
        if not _users[name]:
            del _users[name], ALL_ATTENTION_FUNCTIONS[REGISTERED + name]


def implementation_of(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that computes ``module``'s attention under the implementation ``name``.

    Raises:
        UnsupportedModelError: ``name`` cannot be observed.
    """
    function: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    if name == "eager":
        function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    elif name in observable_implementations():
        function = ALL_ATTENTION_FUNCTIONS.get(name)
    if function is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} computes its attention with {name!r}, which cannot be observed. Load the model "
            f"with attn_implementation set to one of: {', '.join(observable_implementations())}."
        )
    return function
