"""The report in a real browser (Debian's Chromium): from disk, by keyboard, in light and dark, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flow_reports
import pytest

from flowcut.view.flow_report import save_flow_report

SCREENS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
    "phone": {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}, "has_touch": True},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return save_flow_report(path, flow_reports.of_a_picture().data)


@pytest.fixture
def opened(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page; behind a test, nothing was asked for and nothing complained."""
    context = browser.new_context(offline=True, **SCREENS[getattr(request, "param", "light")])
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda call: asked.append(call.url))
    page.goto(report.as_uri())
    page.wait_for_function("canvases[0].width === pictures[0].naturalWidth && pictures[0].naturalWidth > 0")
    yield page
    assert told == []
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}
    context.close()


def darkness(page: Any) -> float:
    """Mean brightness of the first picture."""
    script = """() => {
        const small = document.createElement('canvas');
        const context = small.getContext('2d', {willReadFrequently: true});
        context.drawImage(canvases[0], 0, 0, small.width, small.height);
        const {data} = context.getImageData(0, 0, small.width, small.height);
        return data.reduce((sum, value, place) => sum + (place % 4 < 3 ? value : 0), 0) / data.length;
    }"""
    return float(page.evaluate(script))


def test_the_slider_dims_what_is_gone_and_tells_how_much_is_left(opened: Any) -> None:
    data = flow_reports.of_a_picture().data
    uncut = darkness(opened)
    opened.focus("#layer")
    for layer in range(1, data["layers"]):
        opened.keyboard.press("ArrowRight")
        left = sum(gone < 0 or gone > layer for gone in data["left"])
        assert f"after layer {layer}: {left} of 36 patches left" in opened.inner_text("#left")
    assert "does not read this layer" in opened.inner_text("#left")
    assert darkness(opened) < 0.6 * uncut


def test_patches_are_told_by_keyboard_and_pointer(opened: Any) -> None:
    tile = flow_reports.of_a_picture().sight.flow.tiles[0]
    opened.focus("#pictures canvas")
    first = opened.inner_text("#patch strong")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowDown")
    assert opened.inner_text("#patch strong") != first
    opened.locator("#pictures canvas").hover(position={"x": 2, "y": 2})
    assert opened.inner_text("#patch strong") == "row 0, column 0"
    shown = [float(text) for text in opened.locator("#patch dd").all_inner_texts()]
    expected = [tile.relation_share, tile.semantic_share, tile.density, tile.score, tile.importance, tile.redundancy]
    assert shown[:6] == [pytest.approx(float(numbers[0, 0]), rel=1e-2, abs=1e-6) for numbers in expected]
    gone = flow_reports.of_a_picture().data["left"][0]
    told = opened.inner_text("#patch p")
    assert ("stays to the end" if gone < 0 else f"left after layer {gone}, with ") in told


def test_numbers_can_be_laid_over_the_picture(opened: Any) -> None:
    before = darkness(opened)
    opened.select_option("#colour", label="density")
    assert "dark" in opened.inner_text("#scale")
    assert darkness(opened) != before


def test_methods_answers_and_costs_stand_side_by_side(opened: Any) -> None:
    comparison = flow_reports.of_a_picture().comparison
    assert opened.locator("#grid canvas").count() == len(comparison.rows) == 6
    assert opened.locator("#costs tbody tr").count() == 7
    row = opened.locator("#costs tbody tr").nth(1).inner_text()
    outcome = comparison.rows[0].outcome
    assert outcome is not None and f"{outcome.visual_tokens}" in row.split("\t")
    assert opened.locator("#plots svg").count() == 2
    assert opened.inner_text("h1") == "The flow in <noise>.png"


@pytest.mark.parametrize("opened", SCREENS, indirect=True)
def test_axe_finds_nothing_serious_and_nothing_sticks_out(opened: Any) -> None:
    import axe_playwright_python

    source = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
    opened.evaluate("() => document.querySelector('details').open = true")
    opened.evaluate(source)
    found = opened.evaluate("axe.run()")["violations"]
    assert [(one["id"], one["impact"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
