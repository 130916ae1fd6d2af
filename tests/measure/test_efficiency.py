"""The efficiency report: phases of a call, warm-up, pairs in turns, sums over processes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
from torch import nn

from flowcut import FlowCut, attach
from flowcut.measure import call_timer
from flowcut.measure.call_timer import CallCosts, CallTimer
from flowcut.measure.efficiency import Recorder, Totals, doubling, tokens_until_the_end
from flowcut.measure.efficiency_report import gathered, ratios, read_reports, write_reports
from flowcut.models import find_parts
from flowcut.view.efficiency import HEADINGS, cells, markdown

CPU = torch.device("cpu")
LAYERS, KV_HEADS, HEAD_SIZE, FLOAT = 2, 2, 8, 4


class Clock:
    """Time that passes only where a module is slow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(call_timer, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def slow_down(self, module: nn.Module, seconds: float) -> None:
        """Make every pass through ``module`` take so long."""

        def wait(*_: Any) -> None:
            self.now += seconds

        module.register_forward_pre_hook(wait)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def generated(model: Any, rows: int = 1, tokens: int = 3) -> dict[str, Any]:
    """The arguments of a call."""
    inputs = tiny.batch([tiny.prompt(seed=row) for row in range(rows)])
    pixels = tiny.pictures(rows)
    return {**inputs, "pixel_values": pixels, "do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}


def test_phases_are_told_apart_and_the_first_token_comes_behind_the_prefill(clock: Clock) -> None:
    model = tiny.tiny_model()
    _, parts = find_parts(model)
    for module, seconds in ((parts.tower.module, 6), (parts.projector, 9), (parts.language_model, 4)):
        clock.slow_down(module, seconds)
    with CallTimer(parts, CPU) as timer:
        model.generate(**generated(model, tokens=3))
    costs = timer.costs
    assert (costs.tower, costs.projector, costs.prefill) == (6, 9, 4)
    assert (costs.first_token, costs.total) == (6 + 9 + 4, 6 + 9 + 3 * 4)
    assert costs.peak_bytes > 2**20


def test_a_projector_inside_the_tower_counts_once(clock: Clock) -> None:
    model = tiny_qwen.tiny_model("qwen2_vl")
    inputs = tiny_qwen.batch([tiny_qwen.sample([(1, 4, 4)], [], 4, 0)])
    _, parts = find_parts(model)
    clock.slow_down(parts.projector, 5)
    clock.slow_down(parts.tower.module, 2)
    with CallTimer(parts, CPU) as timer:
        model.generate(**inputs, do_sample=False, max_new_tokens=1)
    assert (timer.costs.projector, timer.costs.tower, timer.costs.total) == (5, 2, 7)


def test_the_caches_bytes_are_those_of_its_tokens() -> None:
    model = tiny.tiny_model()
    _, parts = find_parts(model)
    call = generated(model)
    bytes_of = {}
    for name, budget in (("uncut", None), ("cut", 9)):
        handle = None if budget is None else attach(model, FlowCut(target_num=budget))
        with CallTimer(parts, CPU) as timer:
            model.generate(**call)
        bytes_of[name] = timer.costs.cache_bytes
        if handle is not None:
            handle.detach()
    each = LAYERS * 2 * KV_HEADS * HEAD_SIZE * FLOAT
    assert bytes_of["uncut"] == call["input_ids"].shape[1] * each
    assert bytes_of["uncut"] - bytes_of["cut"] == (tiny.PATCHES - 9) * each


def test_hooks_are_gone_after_an_error() -> None:
    _, parts = find_parts(tiny.tiny_model())
    with pytest.raises(KeyError), CallTimer(parts, CPU):
        raise KeyError
    for module in (parts.tower.module, parts.projector, parts.language_model, parts.top):
        assert not module._forward_hooks and not module._forward_pre_hooks


def recorded(method: FlowCut | None, calls: int = 5, rows: int = 2, **settings: Any) -> Recorder:
    model = tiny.tiny_model()
    recorder = Recorder(model, method, **settings)
    for _ in range(calls):
        recorder.generate(model.generate, **generated(model, rows))
    recorder.close()
    return recorder


def test_the_first_call_is_left_out_and_pairs_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[bool] = []
    timed = CallTimer.__enter__

    def noted(timer: CallTimer) -> CallTimer:
        order.append("forward" in vars(timer._timer._parts.base))
        return timed(timer)

    monkeypatch.setattr(CallTimer, "__enter__", noted)
    recorder = recorded(FlowCut(target_num=9))
    cut, uncut = True, False
    assert order == [cut, uncut, cut, uncut, uncut, cut, cut, cut, uncut], "warm-up, calls 1, 2, 3 and 4"
    assert [call for call in range(20) if doubling(call)] == [1, 2, 4, 8, 16]
    assert recorder.totals.calls == 4 and recorder.totals.questions == 8 and len(recorder.pairs) == 3
    assert recorder.totals.counts.questions == 8 and recorder.totals.counts.visual_tokens == 8 * 9
    assert recorder.totals.later_steps == 4 * 2


def test_an_uncut_row_is_never_cut_and_its_tokens_are_counted_beside_it() -> None:
    recorder = recorded(None, calls=3)
    assert recorder.pairs == [] and recorder.totals.counts.visual_tokens == 3 * 2 * tiny.PATCHES
    report = gathered([recorder.as_dict(batch_size=2)])
    assert report["per_question"]["visual_tokens"] == tiny.PATCHES
    assert report["per_question"]["flops_tower"] > 0 and report["speed_up"] == {}


def test_pairs_can_be_left_out() -> None:
    recorder = recorded(FlowCut(target_num=9), calls=3, paired=None)
    assert recorder.pairs == [] and recorder.totals.calls == 2


def test_an_uncut_run_beside_it_does_not_change_what_is_drawn() -> None:
    answers = []
    for paired in (None, lambda call: True):
        model = tiny.tiny_model()
        recorder = Recorder(model, FlowCut(target_num=9), paired)
        torch.manual_seed(1)
        call = {**generated(model, tokens=6), "do_sample": True, "temperature": 3.0}
        answers.append([recorder.generate(model.generate, **call).tolist() for _ in range(3)])
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]


def test_answers_end_with_their_first_end_token() -> None:
    new = torch.tensor([[5, 2, 0, 0], [5, 5, 5, 5], [2, 2, 2, 2]])
    assert tokens_until_the_end(new, tiny.tiny_model()) == 2 + 4 + 1


def costs_of(seconds: float) -> CallCosts:
    return CallCosts(seconds, seconds, 2 * seconds, 5 * seconds, 8 * seconds, 1024, 10)


def test_processes_are_summed_and_the_peak_is_the_largest() -> None:
    records = []
    for rank, seconds in enumerate((1.0, 3.0)):
        totals = Totals()
        totals.add(costs_of(seconds), 0.5, rows=4, length=4, new_tokens=13)
        totals.peak_bytes += rank
        told = {"environment": {"versions": {}, "device": "cpu"}, "totals": asdict(totals), "uncounted": ""}
        records.append({**told, "pairs": [[dict.fromkeys(SECONDS, 2 * seconds), dict.fromkeys(SECONDS, seconds)]]})
    report = gathered(records)
    assert report["environment"]["processes"] == 2 and report["totals"]["questions"] == 8
    assert report["per_question"]["tower"] == 4.0 / 8 and report["per_question"]["cache_bytes"] == 2048 / 8
    assert report["per_call"]["first_token_with_preprocessing"] == (1.0 + 20.0) / 2
    assert report["per_token"] == (8 - 5) * 4.0 / 6 and report["totals"]["peak_bytes"] == 11
    assert report["speed_up"]["prefill"] == {"median": 2.0, "low": 2.0, "high": 2.0, "pairs": 2}
    assert report["per_question"]["visual_tokens"] is None
    shown = markdown({"flowcut 9": report})
    assert len(cells("flowcut 9", report)) == len(HEADINGS) and "2.00x (2.00-2.00)" in shown and "processes 2" in shown
    with pytest.raises(ValueError, match="at least one process"):
        gathered([])


SECONDS = ("preprocessing", "tower", "projector", "prefill", "first_token", "total")


def test_ratios_are_medians_with_quartiles() -> None:
    pairs = [[dict.fromkeys(SECONDS, float(uncut)), dict.fromkeys(SECONDS, 1.0)] for uncut in (1, 2, 3, 4, 50)]
    assert ratios(pairs)["total"] == {"median": 3.0, "low": 2.0, "high": 4.0, "pairs": 5}


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_reports(tmp_path) == {}
    path = write_reports(tmp_path / "new", {"uncut": {"pairs": []}})
    assert read_reports(tmp_path / "new") == {"uncut": {"pairs": []}}
    path.write_text("{")
    with pytest.raises(ValueError, match="holds no efficiency reports"):
        read_reports(tmp_path / "new")
