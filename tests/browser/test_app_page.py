"""``flowcut app`` in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoint
from PIL import Image

if not os.environ.get("FLOWCUT_REQUIRE_BROWSER"):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'flowcut[app]'")

SECONDS = 60_000
PAUSE = 500
"""Milliseconds that a person takes at least: Gradio 6.31 loses what is asked in the instant when a stream closes."""

OTHER_THAN = "last => document.querySelector('#overlay .step:not([hidden]) img').alt !== last"
"""Whether the picture above the grid shows another step than it did."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that runs on a tiny model."""
    folder = tmp_path_factory.mktemp("app")
    checkpoint = tiny_checkpoint.save_checkpoint(folder / "model")
    options = ("--model", str(checkpoint), "--port", "0", "--device", "cpu", "--max-new-tokens", "4")
    code = "from flowcut.cli import app; app()"
    log = (folder / "log.txt").open("w+")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    server = subprocess.Popen(
        [sys.executable, "-c", code, "app", *options], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    assert server.stdout is not None
    stop = threading.Timer(180, server.kill)
    stop.start()
    told = next((line for line in server.stdout if "Open http" in line), "")
    stop.cancel()
    log.seek(0)
    assert told, log.read()
    found = re.search(r"http://\S+", told)
    assert found is not None
    yield found.group()
    server.terminate()
    server.wait(30)


class Visit:
    """A visitor with a browser of their own, and what the browser asked for and complained about."""

    def __init__(self, browser: Any, address: str, width: int = 1100) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.goto(address, timeout=SECONDS)
        self.page.wait_for_selector("#ask", timeout=SECONDS)
        self.page.wait_for_selector("#upload input[type=file]", state="attached", timeout=SECONDS)

    def send(self, path: Path) -> None:
        """Choose a file of one's own."""
        self.page.set_input_files("#upload input[type=file]", str(path))

    def ask(self, question: str, budgets: str) -> str:
        """Ask, and wait until everything is answered; gives the table."""
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_label("Visual tokens, separated by commas").fill(budgets)
        self.press()
        self.page.wait_for_selector("#answers :text('One run each')", timeout=SECONDS)
        self.page.wait_for_selector("#grid img", timeout=SECONDS)
        return str(self.page.inner_text("#answers"))

    def press(self) -> None:
        """Press the button."""
        self.page.wait_for_timeout(PAUSE)
        self.page.click("#ask")

    def overlay(self) -> str:
        """What the picture above the grid shows, in words."""
        return str(self.page.locator("#overlay img:visible").get_attribute("alt"))


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    visitor = Visit(browser, address)
    yield visitor
    visitor.context.close()


def save(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def test_send_ask_move_the_slider_compare(visit: Visit, address: str, tmp_path: Path) -> None:
    visit.send(save(tmp_path / "mine.png"))
    visit.page.wait_for_selector("#preview img[alt='Your picture, 120 x 90 pixels']", timeout=SECONDS)
    table = visit.ask("word5 ?", "9,4")
    for line in ("uncut", "flowcut(target_num=9)", "flowcut_plus(target_num=9)", "flowcut_plus(target_num=4)"):
        assert line in table
    assert visit.overlay().endswith(": 9 of 36")
    slider = visit.page.locator("#layer input[type=range]")
    slider.focus()
    seen = [visit.overlay()]
    while not seen[-1].startswith("as it came"):
        visit.page.keyboard.press("ArrowLeft")
        visit.page.wait_for_function(OTHER_THAN, arg=seen[-1], timeout=SECONDS)
        seen.append(visit.overlay())
    left = [int(one.rpartition(": ")[2].split()[0]) for one in seen]
    assert seen[-1] == "as it came: 36 of 36" and left == sorted(set(left)) and len(left) > 2
    visit.page.wait_for_timeout(PAUSE)
    visit.page.click("#shown input")
    visit.page.get_by_role("option", name="flowcut_plus(target_num=4)").click()
    visit.page.wait_for_selector("#overlay img[alt$=': 4 of 36']", timeout=SECONDS)
    assert visit.page.get_attribute("#grid img", "alt") == "What every method kept"
    visit.page.wait_for_timeout(PAUSE)
    visit.page.click("#make")
    with visit.page.expect_download(timeout=SECONDS) as told:
        visit.page.locator("#report a").click(timeout=SECONDS)
    report = Path(told.value.path()).read_text()
    assert told.value.suggested_filename == "flowcut-report.html" and report.startswith("<!doctype html>")
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith((address, "data:", "blob:"))] == []


def test_what_goes_wrong_is_said(visit: Visit, tmp_path: Path) -> None:
    visit.press()
    visit.page.wait_for_selector("#problem :text('There is no picture yet')", timeout=SECONDS)
    broken = save(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:500])
    visit.send(broken)
    visit.page.wait_for_selector("#problem :text('broken.png is a broken image')", timeout=SECONDS)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(21 * 2**20))
    visit.send(large)
    visit.page.wait_for_selector(":text-matches('maximum allowed size|too large|exceed', 'i')", timeout=SECONDS)
    visit.send(save(tmp_path / "good.png"))
    visit.page.wait_for_selector("#preview img", timeout=SECONDS)
    visit.page.get_by_label("Visual tokens, separated by commas").fill("many")
    visit.press()
    visit.page.wait_for_selector("#problem :text('Visual tokens are whole numbers')", timeout=SECONDS)
    assert "flowcut(target_num=9)" in visit.ask("word5 ?", "9")


def test_nothing_that_is_done_is_lost_while_the_last_answer_is_drawn(visit: Visit, tmp_path: Path) -> None:
    visit.send(save(tmp_path / "mine.png"))
    visit.page.wait_for_selector("#preview img", timeout=SECONDS)
    budgets = visit.page.get_by_label("Visual tokens, separated by commas")
    visit.page.get_by_label("Question").fill("word5 ?")
    for budget in ("9", "4", "9", "4", "9", "4"):
        budgets.fill("many")
        visit.press()
        visit.page.wait_for_selector("#problem :text('Visual tokens are whole numbers')", timeout=SECONDS)
        budgets.fill(budget)
        visit.press()
        visit.page.wait_for_selector(f"#answers :text('flowcut_plus(target_num={budget})')", timeout=SECONDS)


def test_two_visitors_at_once(browser: Any, address: str, tmp_path: Path) -> None:
    visitors = [Visit(browser, address), Visit(browser, address, width=390)]
    for seed, visitor in enumerate(visitors):
        visitor.send(save(tmp_path / f"picture {seed}.png", seed))
        visitor.page.wait_for_selector("#preview img", timeout=SECONDS)
        visitor.page.get_by_label("Question").fill("word5 ?")
        visitor.page.get_by_label("Visual tokens, separated by commas").fill("9" if seed else "4")
    for visitor in visitors:
        visitor.press()
    for seed, visitor in enumerate(visitors):
        visitor.page.wait_for_selector("#grid img", timeout=SECONDS)
        table = visitor.page.inner_text("#answers")
        assert f"flowcut(target_num={9 if seed else 4})" in table and f"target_num={4 if seed else 9}" not in table
        assert visitor.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
        visitor.context.close()


def test_it_says_what_it_may_load_and_keeps_no_uploads(visit: Visit, address: str, tmp_path: Path) -> None:
    answer = visit.context.request.get(address)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    visit.send(save(tmp_path / "kept-nowhere.png"))
    visit.page.wait_for_selector("#preview img", timeout=SECONDS)
    for folder in (Path("/dev/shm"), Path("/tmp")):
        assert not list(folder.glob("flowcut-app-*/**/kept-nowhere.png"))
