"""The training examples, run on a tiny model on disk: they train, log what they should, and write their adapters."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import tiny_checkpoint

from flowcut.trace import ImageTrace

peft: Any = pytest.importorskip("peft", reason="PEFT is one of the development extras")
trl: Any = pytest.importorskip("trl", reason="TRL is one of the development extras")

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = (
    "{% for message in messages %}{{ ' USER : ' if message['role'] == 'user' else ' ASSISTANT : ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT : ' }}{% endif %}"
)


def example(name: str) -> ModuleType:
    """One of the example scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "trainer"), [("train_sft_lora", "SFTTrainer"), ("train_dpo", "DPOTrainer")])
def test_the_example_trains_with_the_cut_and_writes_adapters(
    name: str, trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.tiny_model().save_pretrained(tmp_path / "model")
    tiny_checkpoint.tiny_processor(TEMPLATE).save_pretrained(tmp_path / "model")
    script, trainers, kept = example(name), [], set()

    class Watched(getattr(trl, trainer)):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    def count(self: ImageTrace, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        kept.add(len(self.kept))

    original = ImageTrace.__init__
    monkeypatch.setattr(ImageTrace, "__init__", count)
    monkeypatch.setattr(script, trainer, Watched)
    script.main(tmp_path / "out", model=str(tmp_path / "model"), target_num=9, steps=2, learning_rate=0.05)
    assert kept == {9}
    losses = [entry["loss"] for entry in trainers[0].state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    if name == "train_dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
        assert losses[1] != losses[0]
    else:
        batch = next(iter(trainers[0].get_train_dataloader()))
        answers = trainers[0].processing_class.tokenizer.batch_decode(batch["labels"].clamp(min=0))
        assert all("USER" not in answer and "<image>" not in answer for answer in answers)
    loaded = peft.PeftModel.from_pretrained(tiny.tiny_model(), tmp_path / "out")
    assert '"target_num": 9' in (tmp_path / "out" / "flowcut.json").read_text()
    weights = [weight for name, weight in loaded.named_parameters() if "lora_B" in name]
    assert weights and all(bool(weight.abs().sum() > 0) for weight in weights)
