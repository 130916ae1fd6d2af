"""How many operations a block of code hands to the device, and how often the host waits for it.

On a fast GPU a pass with few tokens is bound by both, and not by arithmetic. They are counted where torch dispatches
operations, so that a CPU tells what a GPU will be asked to do: the counts of a model are the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_KERNEL = frozenset({"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
"""Operations that launch nothing although they are no views by their schema: other shapes and fresh memory."""

WAITING = frozenset(
    {
        "_local_scalar_dense",
        "_unique2",
        "allclose",
        "bincount",
        "equal",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    }
)
"""Operations whose result, or its shape, the host must know: it waits until the device has come that far."""

READING: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.__dlpack__}
)
"""Methods with which the host reads a tensor; on a tensor of the host itself torch dispatches nothing for them."""


class KernelCounter:
    """Counts inside a ``with`` block; nests, and changes no result.

    A kernel is one dispatched operation that computes or copies; views and fresh memory are none, and one that a
    library runs in several steps counts once. A wait is a place where the host needs to know something that the
    device computes: ``.item()``, ``bool(tensor)``, ``.tolist()``, ``nonzero``, an index by a boolean mask, a copy to
    the host. An upload is a tensor made of numbers of the host (``torch.tensor([1, 2])``) or a copy from it, for which
    a GPU's stream is waited as well, and which a CUDA graph cannot hold.

    Args:
        device: whose work counts. On ``cpu`` everything does, as if all tensors lay on a GPU; on another device only
            what concerns a tensor there.

    Attributes:
        kernels: operations.
        waits: see above.
        uploads: see above.
        kernels_by_name, waits_by_name: the same by the operation's name.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.kernels_by_name: Counter[str] = Counter()
        self.waits_by_name: Counter[str] = Counter()
        self.uploads = 0
        self._modes = ExitStack()

    @property
    def kernels(self) -> int:
        return self.kernels_by_name.total()

    @property
    def waits(self) -> int:
        return self.waits_by_name.total()

    def __enter__(self) -> KernelCounter:
        self._modes.enter_context(Called(self))
        self._modes.enter_context(Dispatched(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._modes.close()

    def here(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where work is counted."""
        return tensor.device.type == self.device.type

    def note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Book one dispatched operation."""
        name = str(function.overloadpacket.__name__)
        given = list(tensors_in((*args, *kwargs.values())))
        made = list(tensors_in((result,)))
        if not any(self.here(tensor) for tensor in (*given, *made)):
            return
        if name == "lift_fresh":
            self.uploads += 1
        elif name in ("_to_copy", "copy_") and given and self.device.type != "cpu":
            self._note_copy(name, given[-1], made[0])
        elif name == "_local_scalar_dense":
            self.waits_by_name[name] += 1
        elif not function.is_view and name not in WITHOUT_KERNEL:
            self.kernels_by_name[name] += 1
            if name in WAITING or waits_for_mask(name, args) or waits_for_length(name, args, kwargs):
                self.waits_by_name[name] += 1

    def _note_copy(self, name: str, source: Tensor, target: Tensor) -> None:
        """Book a copy, which may cross the border between host and device."""
        if not self.here(target):
            self.waits_by_name[name] += 1
        elif not self.here(source):
            self.uploads += 1
        else:
            self.kernels_by_name[name] += 1

    def read(self, function: Callable[..., Any], tensor: Tensor) -> None:
        """Book the host's reading of a tensor that lies with it: on a GPU it would be a copy to the host."""
        if self.device.type == "cpu" and tensor.device.type == "cpu":
            self.waits_by_name[function.__name__] += 1


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells a counter every operation."""

    def __init__(self, counter: KernelCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = counter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counter.note(func, args, kwargs or {}, result)
        return result


class Called(TorchFunctionMode):
    """Tells a counter of the methods in :data:`READING`, and of ``to("cpu")``."""

    def __init__(self, counter: KernelCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[1] if len(args) > 1 else kwargs.get("device")
        if func in READING or (func is Tensor.to and isinstance(target, str) and target == "cpu"):
            self.counter.read(func, args[0])
        return func(*args, **kwargs)


def tensors_in(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among ``values`` and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def waits_for_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index counts the true entries of a boolean mask; writing one number through one mask does not."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    indices = [index for index in args[1] if index is not None]
    if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return False
    return name == "index" or len(indices) > 1 or args[2].numel() != 1


def waits_for_length(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether rows are repeated by counts whose sum nobody gave."""
    counts_given = name == "repeat_interleave" and any(isinstance(value, Tensor) for value in args)
    return counts_given and kwargs.get("output_size") is None
