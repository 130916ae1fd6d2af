"""A checkpoint remembers the method it was trained with, and still loads as any other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

import flowcut
from flowcut import FlowCut, FlowCutCallback, FlowCutError, VisionZip, attach
from flowcut.algorithm.calibration import Calibration
from flowcut.attaching import handle_of
from flowcut.checkpoints.loading import load_model
from flowcut.checkpoints.memory import FORMAT, MEMORY, PUBLISHED, SCHEDULE, read_memory, write_memory
from flowcut.methods.base import Method
from flowcut.methods.fixed_schedule import read_calibration, write_calibration

METHODS = [
    FlowCut(target_num=9, history=0.7, cut_every=None),
    FlowCut.as_released(7),
    FlowCut(retain_ratio=1 / 3, positions="original"),
    *(method(target_num=9) for method in flowcut.METHODS.values() if method is not VisionZip),
    VisionZip(dominant=6, contextual=3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_remembered_with_all_its_settings(method: Method, tmp_path: Path) -> None:
    write_memory(method, tmp_path)
    memory = read_memory(tmp_path)
    assert memory is not None and memory.method == method and memory.base is None
    assert not memory.difference(method)


def test_the_file_of_a_schedule_travels_with_the_checkpoint(tmp_path: Path) -> None:
    calibration = Calibration(feature_layer=5, every=2, shares=(0.25,), ratios=((0.6, 0.8, 1.0),))
    write_calibration(tmp_path / "mine.json", calibration, "tiny", 2)
    write_memory(FlowCut(target_num=9, schedule=str(tmp_path / "mine.json")), tmp_path / "written")
    (tmp_path / "mine.json").unlink()
    (tmp_path / "written").rename(tmp_path / "moved")
    memory = read_memory(tmp_path / "moved")
    assert memory is not None and isinstance(memory.method, FlowCut)
    assert memory.method.schedule == str(tmp_path / "moved" / SCHEDULE)
    assert read_calibration(memory.method.schedule) == calibration
    write_memory(memory.method, tmp_path / "moved")
    assert read_memory(tmp_path / "moved") == memory


@pytest.mark.parametrize("schedule", ["/etc/schedule.json", "../mine.json", "other.json"])
def test_a_checkpoint_names_no_file_outside_itself(tmp_path: Path, schedule: str) -> None:
    calibration = Calibration(feature_layer=5, every=2, shares=(0.25,), ratios=((0.6, 0.8, 1.0),))
    write_calibration(tmp_path / "mine.json", calibration, "tiny", 2)
    file = write_memory(FlowCut(target_num=9, schedule=str(tmp_path / "mine.json")), tmp_path / "written")
    file.write_text(file.read_text().replace(SCHEDULE, schedule))
    with pytest.raises(FlowCutError, match=re.escape(f"names the schedule {schedule!r}. Only {SCHEDULE}, beside it")):
        read_memory(tmp_path / "written")
    file.write_text(file.read_text().replace(schedule, SCHEDULE))
    file.with_name(SCHEDULE).unlink()
    with pytest.raises(FlowCutError, match="put the file there"):
        read_memory(tmp_path / "written")


def test_a_saved_model_loads_attached_and_gives_what_it_gave(tmp_path: Path) -> None:
    model, method = tiny.tiny_model(), FlowCut(target_num=9)
    handle = attach(model, method)
    inputs = {**tiny.batch([tiny.prompt()]), "pixel_values": tiny.pictures(1)}
    expected = model(**inputs).logits
    flowcut.save(model, tmp_path, processor=tiny_checkpoint.tiny_processor())
    assert "flowcut" not in (tmp_path / "config.json").read_text()
    again = flowcut.load(tmp_path, device="cpu")
    found = handle_of(again)
    assert found is not None and found.method == method and not again.training
    assert torch.equal(again(**inputs).logits, expected)
    handle.detach()
    plain: Any = AutoModelForImageTextToText
    plain = plain.from_pretrained(tmp_path)
    assert handle_of(plain) is None
    assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


def test_another_budget_is_warned_of_and_used(tmp_path: Path) -> None:
    model = tiny.tiny_model()
    attach(model, FlowCut(target_num=9, history=0.7))
    flowcut.save(model, tmp_path)
    with pytest.warns(UserWarning, match="trained with target_num=9 .*run with target_num=5"):
        again = flowcut.load(tmp_path, target_num=5, device="cpu")
    found = handle_of(again)
    assert found is not None and found.method == FlowCut(target_num=5, history=0.7)


def test_adapters_remember_and_are_merged_when_loaded(tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft", reason="PEFT is one of the development extras")
    tiny_checkpoint.save_checkpoint(tmp_path / "base")
    base: Any = AutoModelForImageTextToText
    base = base.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=2,
        target_modules=r".*language_model.*q_proj",
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    attach(model, FlowCut(target_num=9))
    inputs = {**tiny.batch([tiny.prompt()]), "pixel_values": tiny.pictures(1)}
    expected = model(**inputs).logits
    flowcut.save(model, tmp_path / "adapters")
    again = flowcut.load(tmp_path / "adapters", device="cpu")
    assert not [name for name, _ in again.named_parameters() if "lora" in name or "modules_to_save" in name]
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    loaded = load_model(str(tmp_path / "adapters"), "cpu")
    assert loaded.processor.tokenizer is not None


def test_what_has_no_method_or_an_unknown_one_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(FlowCutError, match="Nothing is attached"):
        flowcut.save(tiny.tiny_model(), tmp_path)

    class Mine(FlowCut):
        name = "mine"

    with pytest.raises(FlowCutError, match="METHODS\\['mine'\\] = Mine"):
        FlowCutCallback(Mine(target_num=9))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_says_nothing_is_not_loaded_attached(tmp_path: Path) -> None:
    tiny.tiny_model().save_pretrained(tmp_path)
    assert read_memory(tmp_path) is None
    with pytest.raises(FlowCutError, match=r"has no flowcut\.json"):
        flowcut.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1, "flowcut": "9.0.0"}, "written by flowcut 9.0.0"),
        ({"method": "mine"}, "'mine', which is not known"),
        ({"settings": {"target_num": 9, "nonsense": 1}}, "nonsense"),
        ({"settings": {"target_num": 0}}, "target_num must be"),
        ({"settings": None}, "TypeError"),
    ],
)
def test_what_cannot_be_read_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_memory(FlowCut(target_num=9), tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FlowCutError, match=message):
        read_memory(tmp_path)
    file.write_text("{")
    with pytest.raises(FlowCutError, match="not a file that flowcut wrote"):
        read_memory(tmp_path)


def test_checkpoints_in_llavas_format_say_their_budget_in_the_config_or_by_their_published_name(tmp_path: Path) -> None:
    config: dict[str, Any] = {"mm_projector_type": "mlp2x_gelu"}
    for name, target in PUBLISHED.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        memory = read_memory(folder)
        assert memory is not None and memory.method == FlowCut(target_num=target)
        (folder / "config.json").write_text(json.dumps({**config, "target_num": 100}))
        memory = read_memory(folder)
        assert memory is not None and memory.method == FlowCut(target_num=100) and "config" in memory.source
        assert "trained with target_num=100" in memory.difference(FlowCut(target_num=64))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_memory(tmp_path) is None


def test_trainers_checkpoints_remember_by_the_callback(tmp_path: Path) -> None:
    model, method = tiny.tiny_model(), FlowCut(target_num=9)
    ids = tiny.batch([tiny.prompt()])["input_ids"][0]
    row = {"input_ids": ids, "labels": ids.masked_fill(ids == tiny.IMAGE_TOKEN, -100)}
    rows = [{**row, "pixel_values": tiny.pictures(1)[0]}] * 2
    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, max_steps=2, save_steps=1, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[FlowCutCallback(method)])
    handle = handle_of(model)
    assert handle is not None and handle.method == method
    trainer.train()
    trainer.save_model()
    assert handle.attached and handle.trace.images[0].kept.numel() == 9
    for folder in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert (folder / MEMORY).is_file()
    again = flowcut.load(tmp_path / "checkpoint-2", device="cpu")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
