"""A headless Chromium for the tests of pages; they are left out where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium; ``FLOWCUT_REQUIRE_BROWSER`` makes it an error that it, its driver or axe is not there."""
    if not os.environ.get("FLOWCUT_REQUIRE_BROWSER"):
        pytest.importorskip("playwright", reason="needs playwright: pip install playwright axe-playwright-python")
        pytest.importorskip("axe_playwright_python", reason="needs axe: pip install axe-playwright-python")
        if not CHROMIUM:
            pytest.skip("needs a browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox does not start for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = driver.chromium.launch(executable_path=CHROMIUM or None, args=arguments)
        yield launched
        launched.close()
