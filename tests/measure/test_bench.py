"""What `flowcut bench` measures, on tiny models."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from flowcut import FlowCut, Method, make_methods
from flowcut.cli import app
from flowcut.cli.bench import show
from flowcut.measure import subjects
from flowcut.measure.bench import Bench
from flowcut.measure.cases import PHASES, Case, cases_of, uncut_of
from flowcut.measure.real_sizes import Subject
from flowcut.measure.subjects import processor_name
from flowcut.models import find_parts
from flowcut.stages.observing.stage import HANDLE
from flowcut.view.benchmark import COLUMNS, COUNTED, TIMED, as_markdown, cells


def inputs(size: int) -> dict[str, Tensor]:
    return {**tiny.batch([tiny.prompt()] * size), "pixel_values": tiny.pictures(size)}


def methods(target: int) -> list[Method]:
    return make_methods("flowcut,fastv(layers=7)", target)


@pytest.fixture(scope="module")
def measured() -> tuple[Any, list[Case], list[int]]:
    model, steps = tiny.tiny_model(), []
    cases = cases_of(methods, [9], [1, 2])
    Bench(model, inputs, new_tokens=3, rounds=2, clock="process", on_step=lambda: steps.append(1)).run(cases)
    return model, cases, steps


def test_every_case_is_measured_in_every_round(measured: tuple[Any, list[Case], list[int]]) -> None:
    model, cases, steps = measured
    assert [(case.label, case.budget) for case in cases[:3]] == [("none", None), ("flowcut", 9), ("fastv(layers=7)", 9)]
    assert [case.batch_size for case in cases] == [1, 1, 1, 2, 2, 2]
    running = [case for case in cases if not case.refusal]
    assert len(running) == 4 and len(steps) == len(cases) + 2 * len(running)
    for case in running:
        assert len(case.rounds) == 2
        assert all(case.seconds(phase) > 0 for phase in PHASES)
        assert case.seconds("tower") + case.seconds("prefill") < case.seconds("first_token") < case.seconds("total")
        low, high = case.spread("total")
        assert low <= case.seconds("total") <= high
        assert case.tokens_per_second == pytest.approx(3 * case.batch_size / case.seconds("total"))
        assert case.prefill[0] > case.step[0] > 0
    assert HANDLE not in find_parts(model)[1].base.__dict__


def test_a_method_that_refuses_the_model_says_why(measured: tuple[Any, list[Case], list[int]]) -> None:
    _, cases, _ = measured
    refused = cases[2]
    assert "decoder layers" in refused.refusal and not refused.rounds
    assert refused.as_dict(cases[0])["refusal"] == refused.refusal
    assert cells(refused, cases)["tokens"] == refused.refusal


def test_what_is_told_against_the_uncut_model(measured: tuple[Any, list[Case], list[int]]) -> None:
    _, cases, _ = measured
    uncut, cut = cases[0], cases[1]
    assert uncut_of(cut, cases) is uncut and uncut_of(cases[4], cases) is cases[3]
    assert uncut.ratio(uncut, "total") == 1.0 and uncut.arrives(uncut) is None
    assert cut.flop_ratio is not None and 0 < cut.flop_ratio < 1
    told = cut.as_dict(uncut)
    assert told["arrives"] == pytest.approx((1 - cut.ratio(uncut, "first_token")) / (1 - cut.flop_ratio))
    assert told["visual_tokens_mean"] == 9 and set(told["seconds"]) == set(PHASES)
    assert set(cells(cut, cases)) == set(COLUMNS) == {*TIMED, *COUNTED, "projector"}
    assert as_markdown(cases).count("\n") == len(cases) + 2


@pytest.mark.parametrize("sizes", [[1], [1, 2]])
def test_a_terminal_of_80_columns_shows_every_number_whole(
    measured: tuple[Any, list[Case], list[int]], sizes: list[int]
) -> None:
    cases = [case for case in measured[1] if case.batch_size in sizes]
    console = Console(width=80, file=io.StringIO())
    show(console, cases, "A title [of a model]")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    words = shown.replace("\n", " ").split()
    assert max(map(len, shown.splitlines())) <= 80
    assert "A title [of a model]" in shown and "decoder layers" in " ".join(words)
    for case in cases:
        if not case.refusal:
            row = cells(case, cases, spread=False)
            for column in (*TIMED, *COUNTED):
                alone = column == "batch" and len(sizes) == 1
                assert alone or {*column.split(), *row[column].split()} <= set(words)


def test_a_fixed_schedule_is_measured_compiled_as_well() -> None:
    torch.compiler.reset()
    fixed = FlowCut(target_num=9, schedule=(10, 9, 8))
    cases = cases_of(lambda target: [fixed, FlowCut(target_num=target)], [9], [1], compiled=True)
    assert [case.compiled for case in cases] == [False, True, False, True, False]
    compiled = next(case for case in cases if case.compiled and case.method is not None)
    assert compiled.label == "flowcut(schedule=(10,9,8))" and compiled.budget == 9
    torch.compiler.reset()


PEAK = """
import torch
from flowcut.measure.peak import PeakMemory

with PeakMemory(torch.device("cpu")) as peak:
    torch.ones(64, 1024, 1024)
print(peak.bytes)
"""


def test_peak_memory_sees_what_a_block_takes() -> None:
    # In a process of its own: this one may have given memory back to Linux by halves.
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout.strip()
    if told == "None":
        pytest.skip("this system does not tell a process's peak")
    assert int(told) > 200 * 2**20


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name : Some CPU\n")
    assert processor_name(file) == "Some CPU" and processor_name(tmp_path / "none")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def call(*arguments: Any) -> Any:
    fast = ("--new-tokens", 2, "--rounds", 1, "--device", "cpu")
    return CliRunner().invoke(app, ["bench", *map(str, (*arguments, *fast))])


def test_the_command_writes_all_three_forms(checkpoint: Path, tmp_path: Path) -> None:
    given = ("--model", checkpoint, "--target-num", "8,4", "--methods", "none,flowcut,visionzip", "--clock", "process")
    outcome = call(*given, "--output", tmp_path / "bench", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert [(case["method"], case["target_num"]) for case in report["cases"]] == [
        ("none", None),
        ("flowcut", 8),
        ("visionzip", 8),
        ("flowcut", 4),
        ("visionzip", 4),
    ]
    assert {"hardware", "dtype", "attention", "torch", "transformers", "threads"} <= set(report)
    assert json.loads((tmp_path / "bench" / "bench.json").read_text()) == report
    assert report["hardware"] in (tmp_path / "bench" / "bench.md").read_text()
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 1000


def test_a_family_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.tiny_config()
    text = config.text_config.to_dict()
    small = Subject(
        "tiny/tiny",
        "LlavaForConditionalGeneration",
        {"vision_config": config.vision_config, "image_token_id": tiny.IMAGE_TOKEN},
        {**text, "vocab_size": 1024},
        2,
        tiny.PATCHES,
        lambda: {"pixel_values": tiny.pictures(1)},
        "84 x 84",
        tiny.IMAGE_TOKEN,
    )
    monkeypatch.setattr(subjects, "SUBJECTS", {"small": small})
    outcome = call("--model", "random:small", "--target-num", "8", "--decoder-layers", 1, "--batch-size", "2", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert "tiny/tiny" in report["model"] and "1 decoder layers" in report["model"]
    assert report["cases"][1]["visual_tokens_mean"] == 8


BAD = [
    ("--batch-size", "0"),
    ("--target-num", "a"),
    ("--clock", "sun"),
    ("--model", "random:nothing"),
    ("--decoder-layers", "3"),
    ("--methods", "nothing"),
]


@pytest.mark.parametrize(("option", "value"), BAD)
def test_bad_options_are_one_red_line(option: str, value: str) -> None:
    outcome = call(option, value)
    assert outcome.exit_code == 2 and outcome.stderr.count("Error:") == 1
