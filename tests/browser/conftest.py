"""A headless Chromium for the tests of pages; they are left out where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser of the system; ``FLOWCUT_REQUIRE_BROWSER`` makes its absence an error."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        assert not os.environ.get("FLOWCUT_REQUIRE_BROWSER"), "Playwright or Chromium is not installed"
        pytest.skip("needs Playwright and a Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
