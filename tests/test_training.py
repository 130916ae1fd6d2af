"""Gradients, losses, gradient checkpointing, half precision, PEFT."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from flowcut import FlowCut, attach, detach

TARGET = 9


def labelled(side: str = "left") -> dict[str, Tensor]:
    """Three samples, one without image, two with; labels on every text token but the first two."""
    prompts = [tiny.prompt(1, 8, 1), tiny.prompt(0, 5, 2), tiny.prompt(2, 4, 3)]
    inputs = tiny.batch(prompts, side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    labels = ids.masked_fill((ids == tiny.IMAGE_TOKEN) | ~mask | (ids == 1), -100)
    return {**inputs, "labels": labels, "pixel_values": tiny.pictures(3)}


def loss_by_hand(logits: Tensor, columns: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over every labelled token, predicted from the kept token before it."""
    losses = []
    for row in range(len(columns)):
        kept = [(place, column) for place, column in enumerate(columns[row].tolist()) if column >= 0]
        for (place, _), (_, column) in pairwise(kept):
            label = int(labels[row, column])
            if label != -100:
                losses.append(-torch.log_softmax(logits[row, place], -1)[label])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_the_loss_over_the_kept_sequence(side: str) -> None:
    model, inputs = tiny.tiny_model(), labelled(side)
    handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    output = model(**inputs)
    assert handle.trace.sequence is not None
    expected = loss_by_hand(output.logits, handle.trace.sequence.columns, inputs["labels"])
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="labels have 3 columns"):
        model(**{**inputs, "labels": inputs["labels"][:, :3]})


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_tower_projector_and_language_model() -> None:
    model = tiny.tiny_model()
    attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    found = gradients(model, labelled())
    for part in (
        "vision_tower.encoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.linear_1",
        "layers.1.mlp",
    ):
        norms = [grad.norm() for name, grad in found.items() if part in name]
        assert norms and all(norm > 0 for norm in norms), part
    assert not [name for name in found if "vision_tower.encoder.layers.7." in name and found[name].abs().sum() > 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_of_a_ragged_batch_are_those_of_single_runs(attention: str) -> None:
    model, pixels = tiny.tiny_model(attention=attention), tiny.pictures(4)
    attach(model, FlowCut(target_num=TARGET, outputs="kept"))

    def gradients_of(images: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        torch.stack(list(model.get_image_features(images).pooler_output)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.model.vision_tower.named_parameters() if p.grad is not None}

    singles = [gradients_of(pixels[image : image + 1]) for image in range(4)]
    together = gradients_of(pixels)
    expected = {name: torch.stack([single[name] for single in singles]).sum(0) for name in together}
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_gradient_checkpointing_gives_the_same_gradients(tower: str, reentrant: bool) -> None:
    model, inputs = tiny.tiny_model(tower).train(), labelled()
    handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    expected = gradients(model, inputs)
    kept = [image.kept.tolist() for image in handle.trace.images]
    counts = [image.tokens_after_layer for image in handle.trace.images]
    assert len({tuple(count) for count in counts}) > 1, "a ragged batch is what this test is about"
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        # Reentrant checkpoints only propagate where an input requires gradients.
        model.model.vision_tower.embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_())
    found = gradients(model, inputs)
    assert [image.kept.tolist() for image in handle.trace.images] == kept
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    model, inputs = tiny.tiny_model().to(dtype), labelled()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    output = model(**inputs)
    sequence = handle.trace.sequence
    assert sequence is not None
    assert output.logits.dtype == dtype
    assert torch.isfinite(output.logits[sequence.attention_mask.bool()]).all() and torch.isfinite(output.loss)
    assert [len(image.kept) for image in handle.trace.images] == [TARGET] * 3


def test_autocast_scores_in_float32() -> None:
    model, inputs = tiny.tiny_model(), labelled()
    handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**inputs)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert [len(image.kept) for image in handle.trace.images] == [TARGET] * 3
    assert torch.isfinite(model.model.multi_modal_projector.linear_1.weight.grad).all()


@pytest.mark.parametrize("order", ["attach first", "wrap first"])
def test_peft(order: str) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    torch.manual_seed(0)
    model, inputs = tiny.tiny_model(), labelled()
    if order == "attach first":
        handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
        wrapped = get_peft_model(model, config)
    else:
        wrapped = get_peft_model(model, config)
        handle = attach(wrapped, FlowCut(target_num=TARGET, outputs="kept"))
    output = wrapped(**inputs)
    assert handle.trace.sequence is not None
    expected = loss_by_hand(output.logits, handle.trace.sequence.columns, inputs["labels"])
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None for name, p in wrapped.named_parameters() if "lora_" in name)
    answer = wrapped.generate(
        **{name: value for name, value in inputs.items() if name != "labels"},
        max_new_tokens=3,
        do_sample=False,
    )
    assert answer.shape[1] <= inputs["input_ids"].shape[1] + 3
    detach(wrapped)
    assert wrapped(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
