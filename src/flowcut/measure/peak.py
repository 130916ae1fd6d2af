"""The most memory that a block of code takes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures inside a ``with`` block what it takes at most, above what was taken before.

    On CUDA it is what torch allocated on the device; elsewhere the process's memory as Linux counts it, with what an
    allocator keeps for later. Where neither can be had, there is no figure.

    Attributes:
        bytes: the result behind the block; ``None`` where it cannot be had.
        most: the same with what was taken before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self.most: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._before = resident("VmRSS") if forget_peak() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        most = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident("VmHWM")
        if self._before is not None and most is not None:
            self.bytes, self.most = max(0, most - self._before), most


def forget_peak() -> bool:
    """Let Linux count this process's peak anew; whether it did."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def resident(field: str) -> int | None:
    """A field of this process's status in bytes, where there is one."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
