"""flowcut's models inside lmms-eval itself, in this process, on tiny checkpoints and local tasks.

lmms-eval needs an environment of its own: ``.ci/harness`` makes one and runs these.
"""

from __future__ import annotations

import gc
import json
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_harness
import torch

from flowcut import FlowCut, attach
from flowcut.checkpoints.loading import load_model
from flowcut.harness import session, worker
from flowcut.harness.exporting import answers_in_order
from flowcut.harness.likelihood import continuation_losses
from flowcut.harness.prompts import prompt_of_text
from flowcut.harness.rows import HarnessRow, HarnessSettings
from flowcut.harness.stopping import StoppedRun
from flowcut.tasks.asking import Memory, RowPlan, pack_answers, packs

tiny_harness.require_lmms_eval()

from lmms_eval import utils  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402

GROUP = "flowcut_photo_v2"
CUT = "method=flowcut,target_num=9"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_harness.write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_harness.save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(autouse=True)
def harness_version_alone() -> Iterator[None]:
    """Leave the harness as it was."""
    tell = utils.get_lmms_eval_cache_version
    yield
    utils.get_lmms_eval_cache_version = tell


def run(tasks: Path, model: str, model_args: str, *, task: str = GROUP, batch_size: int = 1, **more: Any) -> Any:
    """The harness's results."""
    manager = TaskManager("ERROR", include_path=str(tasks), include_defaults=False, model_name=model)
    return simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=[task],
        batch_size=batch_size,
        device="cpu",
        task_manager=manager,
        log_samples=True,
        process_docs_parallel=1,
        **more,
    )


def answers(tasks: Path, *arguments: Any, **more: Any) -> list[str]:
    """What was answered, in the order of ``flowcut eval``."""
    samples = run(tasks, *arguments, **more)["samples"]
    said = {task: {one["doc_id"]: one["filtered_resps"][0] for one in some} for task, some in samples.items()}
    return answers_in_order(tasks, said)


def of_flowcut_eval(checkpoint: Path, budget: int | None) -> list[str]:
    """What ``flowcut eval`` answers to the same questions."""
    loaded = load_model(str(checkpoint), "cpu")
    plan = RowPlan("uncut") if budget is None else RowPlan("flowcut", budget)
    with Memory(loaded) as memory:
        return [
            said for pack in packs(tiny_harness.asked(), 16) for said in pack_answers(loaded, plan, pack, 16, memory)
        ]


def test_every_way_to_ask_gives_the_answers_of_flowcut_eval(tasks: Path, llava: Path) -> None:
    wanted = of_flowcut_eval(llava, 9)
    assert len(wanted) == tiny_harness.LIMIT and len(set(wanted)) > 3
    assert answers(tasks, "flowcut_hf", f"pretrained={llava},{CUT}") == wanted
    assert answers(tasks, "flowcut_hf", f"pretrained={llava},{CUT}", batch_size=4) == wanted
    assert answers(tasks, "flowcut_hf", f"pretrained={llava},{CUT}", batch_size=4, force_simple=True) == wanted
    wrapped = f"wrapped=llava_hf,pretrained={llava},dtype=float32"
    assert answers(tasks, "flowcut", f"{wrapped},{CUT}") == wanted
    uncut = of_flowcut_eval(llava, None)
    assert uncut != wanted
    assert answers(tasks, "flowcut", f"{wrapped},method=none") == uncut
    assert answers(tasks, "llava_hf", f"pretrained={llava},dtype=float32,device_map=cpu") == uncut
    assert answers(tasks, "flowcut_hf", f"pretrained={llava},method=none") == uncut


@pytest.mark.parametrize("model", ["flowcut_hf", "flowcut"])
def test_a_method_that_raises_ends_the_run_although_the_wrapped_class_swallows(
    model: str, tasks: Path, tmp_path: Path
) -> None:
    folder = tiny_harness.save_llava(tmp_path)
    broken = tiny.tiny_model()
    with torch.no_grad():
        broken.model.vision_tower.encoder.layers[0].mlp.fc1.weight[:] = float("nan")
    broken.save_pretrained(folder)
    wrapped = "" if model == "flowcut_hf" else "wrapped=llava_hf,dtype=float32,"
    with pytest.raises(StoppedRun, match="flowcut: answering failed, so this run ends: NonFiniteError"):
        run(tasks, model, f"{wrapped}pretrained={folder},{CUT}")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("flowcut", "pretrained={llava},target_num=9", "wrapped=NAME is needed"),
        ("flowcut", "wrapped=no_such,pretrained={llava},target_num=9", "no_such"),
        (
            "flowcut",
            "wrapped=llava_hf,pretrained={llava},target_num=9,dtpye=x",
            "dtpye is known neither to the method nor",
        ),
        ("flowcut", "wrapped=llava_hf,pretrained={other},target_num=9", "is a model of type 'bert'"),
        ("flowcut_hf", "pretrained={other},target_num=9", "is a model of type 'bert'"),
        ("flowcut_hf", "pretrained={llava}", "needs its budget"),
        ("flowcut_hf", "pretrained={llava},target_num=9,wrapped=llava_hf", "wraps no class"),
        ("flowcut_hf", "target_num=9", "pretrained=MODEL is needed"),
        ("flowcut_hf", "pretrained={llava},target_num=9,efficiency_pairs=some", "takes true or false; got 'some'"),
    ],
)
def test_what_cannot_be_set_up_ends_the_process_and_says_why(
    model: str, arguments: str, message: str, llava: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(StoppedRun) as caught:
        get_model(model).create_from_arg_string(arguments.format(llava=llava, other=tmp_path), {"device": "cpu"})
    assert caught.value.code == str(caught.value) and f"setting up --model {model} failed" in str(caught.value)
    assert message in str(caught.value)


CHOICE = """task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: flowcut_photo_v2_exist.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function utils.picture
doc_to_text: question
doc_to_target: answer
doc_to_choice: ["Yes", "No", "word3 word4"]
metric_list:
  - metric: acc
"""


def test_multiple_choice_is_scored_by_likelihoods_of_the_cut_model(tasks: Path, llava: Path) -> None:
    (tasks / "choice.yaml").write_text(CHOICE)
    loaded = load_model(str(llava), "cpu")
    questions = [json.loads(line) for line in (tasks / "flowcut_photo_v2_exist.jsonl").read_text().splitlines()]
    pictures = {scene.name: scene.picture() for _, scene, _ in tiny_harness.asked()}
    results = run(tasks, "flowcut_hf", f"pretrained={llava},{CUT}", task="choice", batch_size=2, force_simple=True)
    samples = sorted(results["samples"]["choice"], key=lambda sample: sample["doc_id"])
    hits = 0.0
    with attach(loaded.model, FlowCut(target_num=9)):
        for question, sample in zip(questions, samples, strict=True):
            prompt = prompt_of_text(question["question"], [pictures[question["picture"]]], {})
            wanted = continuation_losses(loaded, [prompt] * 3, [" Yes", " No", " word3 word4"])
            ours = [loss for loss, _ in sample["filtered_resps"]]
            assert ours == pytest.approx([loss for loss, _ in wanted], abs=1e-5)
            best = ("Yes", "No", "")[min(range(3), key=lambda place: ours[place])]
            assert sample["acc"] == float(best == question["answer"])
            hits += sample["acc"]
    assert results["results"]["choice"]["acc,none"] == pytest.approx(hits / len(questions))


def test_likelihoods_that_a_wrapped_class_cannot_give_end_the_run(tasks: Path, llava: Path) -> None:
    (tasks / "choice.yaml").write_text(CHOICE)
    with pytest.raises(StoppedRun, match="flowcut: loglikelihood failed, so this run ends"):
        arguments = f"wrapped=llava_hf,pretrained={llava},dtype=float32,{CUT}"
        run(tasks, "flowcut", arguments, task="choice", force_simple=True)


def test_cached_answers_are_told_apart_by_method_settings_and_our_version(
    tasks: Path, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    generate = torch.nn.Module.__call__

    def count() -> int:
        with sqlite3.connect(tmp_path / "cache.db") as db:
            return int(db.execute("SELECT COUNT(*) FROM responses").fetchone()[0])

    def ask(settings: str) -> int:
        run(tasks, "flowcut_hf", f"pretrained={llava},{settings}", task=f"{GROUP}_count", use_cache=str(tmp_path))
        asked.append(count())
        return asked[-1]

    questions = ask(CUT)
    assert questions > 0 and ask(CUT) == questions
    assert ask("method=flowcut,target_num=8") == 2 * questions
    assert ask(f"{CUT},history=0.7") == 3 * questions
    assert ask("method=none") == 4 * questions
    monkeypatch.setattr(session, "__version__", "99.0")
    assert ask(CUT) == 5 * questions
    assert generate is torch.nn.Module.__call__


def test_the_model_is_freed_and_left_as_it_was(tasks: Path, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    made = session.Session.__init__

    def noted(self: Any, harness_model: Any, *rest: Any, **more: Any) -> None:
        made(self, harness_model, *rest, **more)
        seen.append(weakref.ref(harness_model.model))

    monkeypatch.setattr(session.Session, "__init__", noted)
    for arguments in (f"pretrained={llava}", f"wrapped=llava_hf,pretrained={llava},dtype=float32"):
        run(tasks, "flowcut" if "wrapped" in arguments else "flowcut_hf", f"{arguments},{CUT}", task=f"{GROUP}_count")
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


def finished(tasks: Path, folder: Path, settings: HarnessSettings, **row: Any) -> list[dict[str, Any]]:
    """The samples of a row that a worker ran in this process."""
    one = HarnessRow(row.get("method", "flowcut"), row.get("target_num", 9), settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / worker.ROW).write_text(json.dumps(one.identity))
    worker.main(folder)
    done = json.loads((folder / "done.json").read_text())
    (samples,) = done["samples"].values()
    return [json.loads(line) for line in (folder / samples).read_text().splitlines()]


def test_prompts_that_a_task_keeps_for_the_wrapped_class_are_used(tasks: Path, llava: Path, tmp_path: Path) -> None:
    text = (tasks / f"{GROUP}_count.yaml").read_text().replace(f"task: {GROUP}_count", "task: kept")
    kept = 'lmms_eval_specific_kwargs:\n  default: {end: " word1"}\n  llava_hf: {end: " word2"}\n'
    (tasks / "kept.yaml").write_text(text.replace("doc_to_text: question", "doc_to_text: !function kept.text") + kept)
    (tasks / "kept.py").write_text("def text(doc, kwargs):\n    return doc['question'] + kwargs['end']\n")
    common = {"model": str(llava), "tasks": ("kept",), "device": "cpu", "include_path": str(tasks)}
    for name, settings, end in (
        ("ours", HarnessSettings(**common), "word1"),
        ("theirs", HarnessSettings(**common, wrapped="llava_hf", dtype="float32"), "word2"),
    ):
        samples = finished(tasks, tmp_path / name, settings)
        assert samples and all(sample["input"].endswith(end) for sample in samples)
        record = json.loads((tmp_path / name / "efficiency" / "efficiency-0.json").read_text())
        assert record["totals"]["questions"] == len(samples) - 1 and record["environment"]["harness"] == "lmms-eval"


def test_a_task_that_is_not_there_ends_the_row(tasks: Path, llava: Path, tmp_path: Path) -> None:
    settings = HarnessSettings(model=str(llava), tasks=("no_such_task",), device="cpu", include_path=str(tasks))
    with pytest.raises(StoppedRun, match="Tasks not found: no_such_task"):
        finished(tasks, tmp_path, settings)
    assert not (tmp_path / "done.json").exists()


SAVERS = {
    "qwen2_5_vl": lambda folder: tiny_harness.save_with_template(folder, "qwen2_5_vl"),
    "qwen3_vl": lambda folder: tiny_harness.save_with_template(folder, "qwen3_vl"),
    "internvl_hf": tiny_harness.save_internvl,
    "llava_onevision": lambda folder: tiny_harness.save_with_template(folder, "llava_onevision"),
}
WRAPPED = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "internvl_hf": "internvl_hf",
    "llava_onevision": "llava_hf",
}


@pytest.mark.parametrize("family", SAVERS)
def test_families_run_through_the_harness_in_batches_and_through_its_own_class(
    family: str, tasks: Path, tmp_path: Path
) -> None:
    checkpoint = SAVERS[family](tmp_path / "model")
    task = f"{GROUP}_count"
    ways = [(1, "method=flowcut,retain_ratio=0.3"), (2, "method=flowcut,retain_ratio=0.3")]
    alone, together = (
        answers_of(run(tasks, "flowcut_hf", f"pretrained={checkpoint},{how}", task=task, batch_size=size))
        for size, how in ways
    )
    assert alone == together and len(alone) > 1
    record = tmp_path / "record"
    arguments = f"wrapped={WRAPPED[family]},pretrained={checkpoint},method=flowcut,retain_ratio=0.3,efficiency={record}"
    wrapped = answers_of(run(tasks, "flowcut", arguments, task=task))
    assert len(wrapped) == len(alone)
    totals = json.loads((record / "efficiency-0.json").read_text())["totals"]
    assert totals["counts"]["visual_tokens"] > 0 and totals["questions"] == len(alone) - 1


def answers_of(results: Any) -> list[str]:
    """The answers to a single task."""
    (samples,) = results["samples"].values()
    return [sample["filtered_resps"][0] for sample in sorted(samples, key=lambda one: one["doc_id"])]
