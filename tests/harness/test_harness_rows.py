"""Rows of the harness: what each runs, when it is finished, and the table that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.harness import gathering, rows, running, worker
from flowcut.harness.gathering import compared, figures, read_gathered, relative_average, save_gathered, table_of
from flowcut.harness.rows import HarnessRow, HarnessSettings, plan_harness_rows

SETTINGS = HarnessSettings(model="/some/model", tasks=("pope", "gqa"), device="cpu", wrapped="llava_hf")


def test_the_uncut_model_comes_first_then_every_method_at_every_budget() -> None:
    planned = plan_harness_rows("none,flowcut(history=0.7),visionzip,fastv(target_num=5)", [192, 64], SETTINGS)
    labels = ["none", *(f"{name} {budget}" for name in ("flowcut(history=0.7)", "visionzip") for budget in (192, 64))]
    assert [row.label for row in planned] == [*labels, "fastv(target_num=5)"]
    assert [row.label for row in plan_harness_rows("none", [64], SETTINGS)] == ["none"]
    with pytest.raises(ValueError, match="names no task"):
        plan_harness_rows("none", [64], replace(SETTINGS, tasks=()))
    with pytest.raises(ValueError, match="Unknown method 'flowcot'"):
        plan_harness_rows("flowcot", [64], SETTINGS)


def test_a_rows_arguments_are_read_by_the_model(tmp_path: Path) -> None:
    from flowcut import FlowCut
    from flowcut.harness.arguments import read_model_arguments

    row = HarnessRow("flowcut(history=0.7)", 64, replace(SETTINGS, model_args="chat_template=x,device_map=cpu"))
    given = read_model_arguments(row.model_args(tmp_path), ("wrapped", "efficiency", "efficiency_pairs", "journal"))
    assert given.method == FlowCut(target_num=64, history=0.7)
    assert given.rest == {"pretrained": "/some/model", "chat_template": "x", "device_map": "cpu"}
    assert given.own["wrapped"] == "llava_hf" and given.own["journal"] == str(tmp_path / "answers")


def test_another_setting_is_another_folder_and_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    row = HarnessRow("flowcut", 64, SETTINGS)
    others = [
        replace(row, target_num=32),
        replace(row, settings=replace(SETTINGS, limit=5)),
        replace(row, versions=("1", "2")),
    ]
    assert len({one.folder(tmp_path) for one in (row, *others)}) == 4
    (tmp_path / worker.ROW).write_text(json.dumps(row.identity))
    assert worker.read_row(tmp_path) == row


def write_results(row: HarnessRow, output: Path, hits: dict[str, list[float]], stem: str = "20260101_000000") -> Path:
    """The files of lmms-eval 0.7.3, as far as they are read, and the mark of a finished row."""
    folder = row.folder(output)
    place = folder / "harness" / "some__model"
    place.mkdir(parents=True)
    metric = {"pope": "pope_f1_score", "gqa": "exact_match"}
    results: dict[str, Any] = {
        "results": {
            task: {"alias": task, f"{metric[task]},none": sum(some) / len(some), f"{metric[task]}_stderr,none": 0.1}
            for task, some in hits.items()
        },
        "configs": {task: {"metric_list": [{"metric": metric[task]}]} for task in hits},
        "group_subtasks": {task: [] for task in hits},
    }
    results["results"]["pope"]["pope_accuracy,none"] = 0.123
    (place / f"{stem}_results.json").write_text(json.dumps(results))
    for task, some in hits.items():
        lines = []
        for number, hit in reversed(list(enumerate(some))):
            value: Any = hit if task == "gqa" else {"question_id": number, "score": hit}
            lines.append(json.dumps({"doc_id": number, metric[task]: value, "filtered_resps": ["yes"]}) + "\n")
        (place / f"{stem}_samples_{task}.jsonl").write_text("".join(lines))
    worker.finish(row, folder, stem, {task: len(some) for task, some in hits.items()})
    return folder


UNCUT = {"pope": [1.0, 1.0, 1.0, 0.0], "gqa": [1.0, 1.0, 0.0, 0.0]}
CUT = {"pope": [1.0, 1.0, 0.0, 0.0], "gqa": [1.0, 0.0, 0.0, 0.0]}


def test_rows_become_a_table_with_paired_intervals_and_the_average_that_papers_print(tmp_path: Path) -> None:
    planned = plan_harness_rows("flowcut", [64], SETTINGS)
    for row, hits in zip(planned, (UNCUT, CUT), strict=True):
        write_results(row, tmp_path, hits)
        assert running.is_done(row, tmp_path)
    found = compared([read_gathered(row, tmp_path) for row in planned])
    uncut, cut = found
    assert uncut.scores == {"pope": 0.75, "gqa": 0.5} and cut.metrics["pope"] == "pope_f1_score"
    assert relative_average(cut, uncut) == pytest.approx((0.5 / 0.75 + 0.25 / 0.5) / 2)
    one = cut.differences["pope"]
    assert one.mean == pytest.approx(-0.25) and one.high - one.mean == pytest.approx(1.959964 * 0.25, abs=1e-5)
    headings, body = table_of(found)
    assert headings == ["row", "pope pope_f1_score", "gqa exact_match", "of uncut"]
    assert body[1] == ["flowcut 64", "50.0 (-25.0: -74.0 to +24.0)", "25.0 (-25.0: -74.0 to +24.0)", "58.3%"]
    paths = save_gathered(tmp_path, {"model": "some"}, found)
    assert json.loads(paths[0].read_text())["rows"] == json.loads(json.dumps(figures(found)))
    assert "| flowcut 64 |" in paths[1].read_text() and cut.efficiency is None


def test_rows_that_answered_other_questions_are_not_compared(tmp_path: Path) -> None:
    planned = plan_harness_rows("flowcut", [64], SETTINGS)
    write_results(planned[0], tmp_path, UNCUT)
    write_results(planned[1], tmp_path, {"pope": [1.0], "gqa": CUT["gqa"]})
    with pytest.raises(ValueError, match="flowcut 64 and none answered other questions of pope"):
        compared([read_gathered(row, tmp_path) for row in planned])


def test_groups_are_the_mean_of_their_tasks_and_mme_the_sum_of_its_two() -> None:
    results = {
        "results": {
            "mme": {"mme_perception_score,none": 1400.0, "mme_cognition_score,none": 300.0},
            "a": {"acc,none": 0.2},
            "b": {"acc,none": 0.4},
            "all": {"alias": "all"},
        },
        "configs": {"a": {"metric_list": [{"metric": "acc"}]}},
        "group_subtasks": {"all": ["a", "b"], "mme": []},
    }
    assert gathering.score_of("mme", results) == ("mme_perception_score+mme_cognition_score", 1700.0)
    name, value = gathering.score_of("all", results)
    assert (name, gathering.members_of("all", results)) == ("mean of 2 tasks", ("a", "b"))
    assert value == pytest.approx(0.3)
    with pytest.raises(ValueError, match="reports no number for c; it has: none"):
        gathering.score_of("c", results)


def test_a_row_whose_files_are_not_whole_is_not_finished(tmp_path: Path) -> None:
    row = HarnessRow("none", None, SETTINGS)
    folder = write_results(row, tmp_path, UNCUT)
    with pytest.raises(OSError, match=r"samples in .* are not whole"):
        worker.finish(row, folder, "20260101_000000", {"pope": 5, "gqa": 4})
    with pytest.raises(OSError, match=r"files in .* are not whole"):
        worker.finish(row, folder, "20260102_000000", {"pope": 4, "gqa": 4})
    next(folder.rglob("*_results.json")).unlink()
    assert not running.is_done(row, tmp_path)
    with pytest.raises(ValueError, match="does not hold a finished row"):
        read_gathered(row, tmp_path)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('flowcut: answering failed: this'); raise SystemExit(1)", "answering failed: this (log:"),
        ("raise SystemExit(3)", "ended with status 3: nothing was printed"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("pass", "ended with status 0"),
    ],
)
def test_a_row_that_does_not_come_to_its_end_says_why(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = running.subprocess.Popen

    def other_program(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "flowcut.harness.worker"]
        return popen([command[0], "-S", "-c", code], **options)

    monkeypatch.setattr(running.subprocess, "Popen", other_program)
    row = HarnessRow("none", None, SETTINGS)
    with pytest.raises(running.RowFailed) as caught:
        running.run_in_processes(row, tmp_path, 1)
    assert reason in str(caught.value) and "The same command goes on from here" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--harness", "vlmevalkit"), "--harness knows lmms-eval; got 'vlmevalkit'"),
        (("--harness", "lmms-eval"), "needs --tasks NAME,NAME"),
        (("--harness", "lmms-eval", "--tasks", "pope", "--per-task", "5"), "--per-task: for the built-in tasks only"),
        (("--wrapped", "llava_hf", "--processes", "2"), "--wrapped, --processes: only with --harness lmms-eval"),
    ],
)
def test_options_of_the_other_kind_are_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", "--model", str(tmp_path), "--output", str(tmp_path), *options])
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())


def test_where_the_harness_is_not_installed_the_command_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["eval", "--harness", "lmms-eval", "--tasks", "pope"])
    assert done.exit_code == 2 and 'pip install ".[lmms-eval]"' in " ".join(done.stderr.split())
