"""Whole runs of ``flowcut train`` on tiny models: what is trained, going on after a kill, what is remembered."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from toy_runs import config_of, make_place, weights
from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM
from typer.testing import CliRunner

import flowcut
from flowcut import FlowCut
from flowcut.attaching import handle_of
from flowcut.checkpoints.memory import read_memory
from flowcut.cli import app
from flowcut.training.run import train
from flowcut.training.trainer import CutTrainer

pytest.importorskip("peft", reason="PEFT is one of the development extras")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("training"))


def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = train(config_of(place, "unbroken"), cpu=True)
    assert unbroken.steps == 5 and unbroken.resumed_from is None
    step = CutTrainer.training_step
    calls: list[int] = []

    def killed(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:  # in the middle of the fifth update, behind the checkpoint of the fourth
            raise KeyboardInterrupt
        return step(self, *given, **named)

    monkeypatch.setattr(CutTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(place, "killed"), cpu=True)
    monkeypatch.setattr(CutTrainer, "training_step", step)
    # The newest checkpoint was not finished: it has no settings yet, so the one before it is taken.
    (place / "killed" / "checkpoint-4" / "training.yaml").unlink()
    resumed = train(config_of(place, "killed"), cpu=True)
    assert resumed.resumed_from == 2 and resumed.steps == 5
    expected = weights(place / "unbroken")
    for name, weight in weights(place / "killed").items():
        assert torch.equal(weight, expected[name]), name
    logs = [list(csv.DictReader((place / name / "log.csv").open())) for name in ("unbroken", "killed")]
    told = [[(row["step"], row["loss"], row["grad_norm"], row["learning_rate"]) for row in log] for log in logs]
    assert told[0] == told[1] and len(told[0]) == 5
    assert all(0.6 < float(row["visual_tokens_saved"]) < 0.8 for row in logs[0] if row["visual_tokens_saved"])
    # A cosine behind one update of warm-up.
    rates = [0.0, *(1e-2 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4))]
    assert [float(row["learning_rate"]) for row in logs[0]] == pytest.approx(rates, rel=1e-3)
    assert all(float(row["tokens_per_second"]) > 0 and float(row["seconds_per_step"]) > 0 for row in logs[1])


def test_a_run_with_other_settings_is_not_gone_on_with(place: Path) -> None:
    train(config_of(place, "other", optimize={"steps": 2}), cpu=True)
    with pytest.raises(ValueError, match=r"a run with other settings \(seed\).*--fresh"):
        train(config_of(place, "other", optimize={"steps": 2}, seed=1), cpu=True)
    assert train(config_of(place, "other", optimize={"steps": 2}, seed=1), fresh=True, cpu=True).resumed_from is None
    expected = weights(place / "other")
    finished = train(config_of(place, "other", optimize={"steps": 2}, seed=1, report={"log_every": 2}), cpu=True)
    assert finished.steps == finished.resumed_from == 2 and finished.loss is None
    for name, weight in weights(place / "other").items():
        assert torch.equal(weight, expected[name]), name


def test_the_command_trains_and_run_answers_with_the_remembered_budget(place: Path) -> None:
    config_of(place, "command", data={"held_out_share": 0.2}, report={"evaluate_every": 2})
    done = CliRunner().invoke(app, ["train", str(place / "command.yaml"), "--cpu", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["method"] == "flowcut(target_num=9)" and report["samples"] == 10 and report["evaluation"]["eval_loss"]
    picture, out = str(place / "1.png"), str(place / "command")
    asked = ["run", picture, "word1", "--model", out, "--max-new-tokens", "1", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cut"]["visual_tokens"] == 9
    assert "was trained with flowcut(target_num=9)" in " ".join(done.stderr.split())
    handle = handle_of(flowcut.load(out, device="cpu"))
    assert handle is not None and handle.method == FlowCut(target_num=9)
    rows = list(csv.DictReader((place / "command" / "log.csv").open()))
    assert [bool(row["eval_loss"]) for row in rows] == [False, True, False, True, True]


@pytest.mark.parametrize(
    ("tune", "moved"),
    [
        ({"language": "frozen", "projector": True}, {"multi_modal_projector"}),
        ({"language": "full", "projector": True}, {"multi_modal_projector", "language_model", "lm_head"}),
        ({"language": "lora", "projector": True}, {"multi_modal_projector", "language_model"}),
        ({"language": "full", "tower": "full"}, {"language_model", "lm_head", "vision_tower"}),
        ({"language": "frozen", "tower": "lora"}, {"vision_tower"}),
        ({"language": "lora", "tower": "full"}, {"language_model", "vision_tower"}),
    ],
    ids=lambda value: "-".join(f"{one}" for one in value.values()) if isinstance(value, dict) else "",
)
def test_the_parts_that_shall_be_trained_move_and_the_others_do_not(
    tune: dict[str, Any], moved: set[str], place: Path
) -> None:
    name = "-".join(map(str, tune.values()))
    result = train(config_of(place, name, tune={"dropout": 0.0, **tune}, optimize={"steps": 3}), cpu=True)
    assert 0 < result.trained[0] < result.trained[1]
    before = tiny.tiny_model().state_dict()
    after = flowcut.load(place / name, device="cpu").state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {
        part
        for part in ("multi_modal_projector", "language_model", "lm_head", "vision_tower")
        if any(part in key for key in changed)
    } == moved
    if tune.get("tower") == "lora":
        assert not any(".layers.7." in key for key in weights(place / name)), "nor has it adapters"
    if tune.get("tower") == "full":
        behind = {key for key in before if "vision_tower" in key and (".layers.7." in key or "post_layernorm" in key)}
        assert behind and not behind & changed, "what the model does not read stays as it is"


def test_a_built_in_task_is_asked_while_training_and_changes_nothing(place: Path) -> None:
    train(config_of(place, "quiet", optimize={"steps": 2}), cpu=True)
    report = {"tasks": "photo-v2", "per_task": 1, "evaluate_every": 1}
    result = train(config_of(place, "asked", optimize={"steps": 2}, report=report), cpu=True)
    assert 0.0 <= result.evaluation["eval_accuracy"] <= 1.0
    expected = weights(place / "quiet")
    for name, weight in weights(place / "asked").items():
        assert torch.equal(weight, expected[name]), name
    with pytest.raises(ValueError, match="asks with a target_num"):
        train(config_of(place, "share", method="flowcut(retain_ratio=0.5)", report=report), cpu=True)


def test_weights_in_half_precision_train_in_whole_precision(place: Path) -> None:
    half = {"weights": "bfloat16", "autocast": True, "steps": 2}
    with pytest.raises(ValueError, match=r"needs optimize\.autocast"):
        config_of(place, "refused", optimize={"weights": "bfloat16"})
    train(config_of(place, "half", optimize=half, tune={"projector": True}), cpu=True)
    assert {weight.dtype for weight in weights(place / "half").values()} == {torch.float32}


def test_tensorboard_that_is_not_installed_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowcut.training.run.find_spec", lambda name: None)
    with pytest.raises(flowcut.FlowCutError, match="pip install tensorboard"):
        train(config_of(place, "board", report={"tensorboard": True}), cpu=True)


def test_tensorboard_gets_what_the_log_has(place: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not one of the development extras")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = {"tensorboard": True, "log_every": 1}
    train(config_of(place, "told", optimize={"steps": 2}, report=report), cpu=True)
    (file,) = (place / "told").glob("**/events.out.*")
    events = EventAccumulator(str(file))
    events.Reload()
    rows = list(csv.DictReader((place / "told" / "log.csv").open()))
    for column, name in (("loss", "train/loss"), ("visual_tokens_saved", "train/visual_tokens_saved")):
        written = [event.value for event in events.Scalars(name)]
        assert written == pytest.approx([float(row[column]) for row in rows if row[column]], rel=1e-3)


def test_a_picture_that_breaks_in_another_process_is_counted(place: Path) -> None:
    (place / "broken.png").write_bytes((place / "1.png").read_bytes()[:300])
    rows = json.loads((place / "rows.json").read_text())
    (place / "broken.json").write_text(json.dumps([{**rows[1], "image": "broken.png"}, *rows]))
    data = {"train": str(place / "broken.json")}
    train(config_of(place, "workers", data=data, optimize={"steps": 4, "workers": 1}), cpu=True)
    logged = list(csv.DictReader((place / "workers" / "log.csv").open()))
    assert [row["bad_samples"] for row in logged][-1] == "1"


def test_a_checkpoint_is_trained_on_with_the_method_it_remembers(place: Path) -> None:
    train(config_of(place, "first", optimize={"steps": 2}), cpu=True)
    config = config_of(place, "second", model=str(place / "first"), method=None, optimize={"steps": 1})
    assert train(config, cpu=True).method == "flowcut(target_num=9)"
    memory = read_memory(place / "second")
    assert memory is not None and memory.method == FlowCut(target_num=9)
    with pytest.raises(ValueError, match="method is missing"):
        train(config_of(place, "third", method=None), cpu=True)


def test_a_run_without_cutting_remembers_nothing_and_saves_nothing(place: Path) -> None:
    result = train(config_of(place, "uncut", method="uncut", optimize={"steps": 2}), cpu=True)
    assert result.method == "uncut" and read_memory(place / "uncut") is None
    rows = list(csv.DictReader((place / "uncut" / "log.csv").open()))
    assert len(rows) == 2 and not any(row["visual_tokens_saved"] for row in rows)


def test_a_new_llava_is_put_together_from_its_parts(place: Path) -> None:
    model = tiny.tiny_model()
    language: Any = LlamaForCausalLM(model.config.text_config)
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.save_pretrained(place / "language")
    tokenizer = tiny_checkpoint.tiny_tokenizer({"<other>": tiny.IMAGE_TOKEN})
    tokenizer.save_pretrained(place / "language")
    tower: Any = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(place / "tower")
    crop = {"height": tiny_checkpoint.SIZE, "width": tiny_checkpoint.SIZE}
    CLIPImageProcessor(size={"shortest_edge": tiny_checkpoint.SIZE}, crop_size=crop).save_pretrained(place / "tower")
    parts = {"language": str(place / "language"), "tower": str(place / "tower")}
    config = config_of(
        place,
        "assembled",
        model=None,
        parts=parts,
        tune={"language": "frozen", "projector": True},
        optimize={"steps": 2},
    )
    train(config, cpu=True)
    made: Any = flowcut.load(place / "assembled", device="cpu")
    for name, weight in model.model.language_model.state_dict().items():
        assert torch.equal(made.model.language_model.state_dict()[name][: len(weight)], weight), name
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(made.model.vision_tower.state_dict()[name], weight), name
    table = made.get_input_embeddings().weight
    assert made.config.image_token_id == 128 and torch.allclose(table[128], table[:128].mean(dim=0), atol=1e-6)
