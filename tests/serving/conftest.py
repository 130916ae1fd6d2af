"""Settings for the tests that start vLLM in this process, and what transformers answers, asked before it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # in whole gigabytes, of which every engine here would fill one
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them, before the first engine starts: it makes classes of transformers its own."""
    import asking
    import checkpoints

    wanted = {item.callspec.params.get("family") for item in request.session.items if hasattr(item, "callspec")}
    return {
        family: asking.made(family, tmp_path_factory.mktemp(family))
        for family in (*checkpoints.FAMILIES, asking.MINI)
        if family in wanted
    }
