"""The recipe computes in a format that the CPU is good at."""

from __future__ import annotations

import pytest
import torch

from recipes.mini.precision import fast_dtype


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("AVX512", torch.bfloat16), ("AVX2", torch.float32), ("DEFAULT", torch.float32)],
)
def test_bfloat16_needs_avx512(capability: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_dtype() == dtype
