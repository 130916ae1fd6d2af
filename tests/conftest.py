"""Settings for the whole suite: quiet threads, a hypothesis profile without deadlines, quick garbage collection."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "methods")]
torch.set_num_threads(1)
settings.register_profile("flowcut", deadline=None, derandomize=True)
settings.load_profile("flowcut")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that fork in front: in the child of a process that has once compiled, torch refuses to go backward."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "two_processes"))


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection, which many tests ask for: a third of a second each."""
    gc.collect()
    gc.freeze()
