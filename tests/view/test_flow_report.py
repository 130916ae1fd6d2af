"""The report of a flow: one file that asks for nothing, whose numbers are those that were seen and traced."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import flow_reports
import numpy as np
import pytest
import torch
import zoo
from torch import Tensor

from flowcut import FlowCut, attach, observe
from flowcut.measure.seeing import Sight
from flowcut.view import flow_report
from flowcut.view.flow_report import kept_layers, on_grid, report_data, report_page, save_flow_report

LARGEST = 3_000_000


def read_back(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def decoded(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").copy())


def test_the_page_s_numbers_are_those_of_flow_trace_and_comparison(tmp_path: Path) -> None:
    report = flow_reports.of_a_picture()
    page = save_flow_report(tmp_path / "report.html", report.data).read_text(encoding="utf-8")
    data, tile, trace = read_back(page), report.sight.flow.tiles[0], report.sight.trace
    assert data == json.loads(json.dumps(report.data))
    assert data["numbered"] == list(range(tile.layers))
    for quantity in data["quantities"]:
        expected = getattr(tile, quantity["name"])
        assert torch.equal(decoded(quantity["values"]).reshape(expected.shape), expected)
    assert report.sight.flow.language is not None
    assert torch.equal(decoded(data["looked"]), report.sight.flow.language.attention.mean(dim=0))
    assert data["tokens_after_layer"] == trace.tokens_after_layer
    for layer, kept in trace.kept_after_layer.items():
        assert [unit for unit, gone in enumerate(data["left"]) if gone < 0 or gone > layer] == kept.tolist()
    assert torch.equal(torch.tensor(data["entropy"][0]), tile.entropy_ratio)
    assert data["uncut"] == json.loads(json.dumps(report.comparison.uncut.as_dict()))
    for shown, row in zip(data["compared"], report.comparison.rows, strict=True):
        assert shown["kept"] == (None if row.kept is None else row.kept.tolist())
        assert shown["budget"] == f"{row.method.target_num} tokens"
        assert shown["outcome"] == (None if row.outcome is None else json.loads(json.dumps(row.outcome.as_dict())))


def test_the_page_is_one_small_file_that_asks_for_nothing() -> None:
    page = report_page(flow_reports.of_a_picture().data)
    assert len(page.encode()) < LARGEST
    assert "default-src 'none'" in page
    markup = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(", markup)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', markup)) == {"data:,"}


def test_a_text_in_the_data_does_not_end_the_script() -> None:
    data = {**flow_reports.of_a_picture().data, "question": "</script><img src=x>"}
    page = report_page(data)
    assert "<img src=x>" not in page
    assert read_back(page)["question"] == "</script><img src=x>"


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics3", "qwen2_5_vl", "video_llava"])
@torch.no_grad()
def test_tiles_frames_and_groups_stand_in_the_grid_of_the_trace(name: str) -> None:
    model, inputs = zoo.case(name).model, zoo.case(name).together(zoo.case(name).samples)
    method = FlowCut(retain_ratio=0.4)
    with observe(model) as flow:
        model(**inputs)
    with attach(model, method) as handle:
        model(**inputs)
    for seen, trace in zip(flow.images, handle.trace.images, strict=True):
        sight = Sight("what?", method, seen, trace, torch.zeros(1))
        rows = len(seen.tiles) * (seen.tiles[0].grid[0] if len(seen.tiles[0].grid) == 3 else 1)
        pictures = [np.zeros((8, 8, 3), dtype=np.float32)] * rows
        data = read_back(report_page(report_data(sight, pictures, None, "tiny", "a picture")))
        units = data["grid"][0] * data["grid"][1] * data["grid"][2]
        assert units == trace.patches == len(data["left"])
        assert [unit for unit, gone in enumerate(data["left"]) if gone < 0] == trace.kept.tolist()
        for quantity in data["quantities"]:
            assert decoded(quantity["values"]).shape == (len(data["numbered"]) * units,)


def test_of_a_large_picture_the_layers_that_cut_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_reports.of_a_picture().sight.flow
    cutting = list(flow.tiles[0].cutting_layers)
    size = sum(4 / 3 * 4 * on_grid(flow, name).shape[1] for name in flow_report.QUANTITIES)
    assert kept_layers(flow, size) == list(range(8))
    monkeypatch.setattr(flow_report, "NUMBER_BYTES", 4 * size)
    assert kept_layers(flow, size) == cutting
    monkeypatch.setattr(flow_report, "NUMBER_BYTES", 2 * size)
    assert kept_layers(flow, size) == cutting[::2]


def test_pictures_are_scaled_down_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).random((700, 900, 3), dtype=np.float32)
    whole = flow_report.data_urls([noise])
    assert whole[0].startswith("data:image/jpeg;base64,")
    monkeypatch.setattr(flow_report, "PICTURE_BYTES", 60_000)
    smaller = flow_report.data_urls([noise, noise])
    assert len(smaller[0]) < 30_100 < len(whole[0])


def test_without_a_comparison_or_a_prompt_the_page_says_less() -> None:
    sight = flow_reports.of_a_picture().sight
    alone = replace(sight, flow=replace(sight.flow, language=None))
    data = report_data(alone, flow_reports.of_a_picture().pictures, None, "tiny", "a picture")
    assert data["looked"] is None and data["uncut"] is None and data["compared"] == []
