"""Tests on the model that ships."""

from __future__ import annotations

import os

import pytest

from flowcut.checkpoints import mini


def require_mini() -> None:
    """Skip where the data package is not installed, unless this run is to have it."""
    if not mini.mini_installed() and not os.environ.get("FLOWCUT_REQUIRE_MINI"):
        pytest.skip(f"flowcut-mini's weights are not installed: {mini.INSTALL}")
