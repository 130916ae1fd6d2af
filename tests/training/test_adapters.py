"""PEFT's LoRA on an attached model: merged and not, saved and loaded, over weights that torchao quantised.

The adapters sit in the tower's attention, in the projector and in the language model, so that what a method sees of
q, k and v has them in it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny
import torch
from torch import Tensor
from training_runs import BUDGET, by_hand, new_model

from flowcut import FlowCut, attach, detach

peft: Any = pytest.importorskip("peft", reason="PEFT is one of the development extras")

TARGETS = r".*(vision_tower.*(q_proj|v_proj)|language_model.*(q_proj|down_proj)|multi_modal_projector.linear_1)"
METHOD = FlowCut(target_num=BUDGET)


def adapted(model: Any, **options: Any) -> Any:
    """The model with adapters that change what it says."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


def asked() -> dict[str, Tensor]:
    """Samples with one image and with two, and labels on their text."""
    inputs = tiny.batch([tiny.prompt(1, 8, 1), tiny.prompt(2, 4, 3)])
    no_label = (inputs["input_ids"] == tiny.IMAGE_TOKEN) | (inputs["attention_mask"] == 0)
    no_label |= inputs["input_ids"] == 1
    labels = inputs["input_ids"].masked_fill(no_label, -100)
    return {**inputs, "pixel_values": tiny.pictures(3), "labels": labels}


def near(found: Tensor, expected: Tensor) -> None:
    """Equal but for what adding an adapter to its weight rounds."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-4)


@torch.no_grad()
def test_merged_and_unmerged_adapters_give_the_same_while_attached() -> None:
    wrapped = adapted(new_model())
    handle = attach(wrapped, METHOD)
    expected = wrapped(**asked()).logits
    kept = [image.kept.tolist() for image in handle.trace.images]
    with wrapped.disable_adapter():
        assert not torch.allclose(wrapped(**asked()).logits, expected, atol=1e-2)
    for change in (wrapped.merge_adapter, wrapped.unmerge_adapter):
        change()
        near(wrapped(**asked()).logits, expected)
        assert [image.kept.tolist() for image in handle.trace.images] == kept
    merged = wrapped.merge_and_unload()
    near(merged(**asked()).logits, expected)
    assert [image.kept.tolist() for image in handle.trace.images] == kept
    inputs = {name: value for name, value in asked().items() if name != "labels"}
    assert not torch.allclose(detach(merged)(**inputs).logits, expected, atol=1e-2)
    plain = adapted(new_model()).merge_and_unload()
    near(merged(**inputs).logits, plain(**inputs).logits)
    with attach(plain, METHOD):
        near(plain(**inputs).logits, expected)


@torch.no_grad()
def test_adapters_saved_while_attached_load_on_a_plain_model(tmp_path: Path) -> None:
    wrapped = adapted(new_model())
    wrapped.save_pretrained(tmp_path / "plain")
    uncut = wrapped(**asked()).logits
    with attach(wrapped, METHOD):
        cut = wrapped(**asked()).logits
        wrapped.save_pretrained(tmp_path / "attached")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        written = [(tmp_path / folder / name).read_bytes() for folder in ("plain", "attached")]
        assert written[0] == written[1], name
    loaded = peft.PeftModel.from_pretrained(new_model(), tmp_path / "attached")
    oracle.close(loaded(**asked()).logits, uncut)
    with attach(loaded, METHOD):
        oracle.close(loaded(**asked()).logits, cut)
    cut_before = new_model()
    attach(cut_before, METHOD)
    oracle.close(peft.PeftModel.from_pretrained(cut_before, tmp_path / "attached")(**asked()).logits, cut)


def test_adapters_train_over_weights_of_eight_bits() -> None:
    quantization: Any = pytest.importorskip("torchao.quantization", reason="pip install torchao, as .ci/run does")
    model, batch = new_model(), asked()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert type(weight) is not torch.nn.Parameter and "Int8" in type(weight).__name__
    alone = copy.deepcopy(model)
    wrapped = adapted(model)
    with attach(wrapped, METHOD) as handle:
        output = wrapped(**batch)
        output.loss.backward()
        assert all(len(image.kept) == BUDGET for image in handle.trace.images)
    for name, parameter in wrapped.named_parameters():
        unread = "vision_tower.encoder.layers.7" in name
        assert (parameter.grad is not None) == ("lora_" in name and not unread), name
    expected, rows = by_hand(model, METHOD, batch)
    oracle.close(output.logits[expected.mask], expected.logits[expected.mask])
    oracle.close(output.loss, oracle.loss_of(rows, batch["labels"]))
    with torch.no_grad(), attach(alone, METHOD):
        assert not torch.allclose(alone(**batch).logits, output.logits, atol=1e-2)
