"""What every model family must do, said once; the tests in ``tests/models`` bring a tiny model and samples."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut import FlowCut, attach
from flowcut.models import find_parts

Sample = dict[str, Any]
"""One prompt: ``input_ids`` as a list, and the tensors of its images and videos as the model takes them."""

VIDEO_TOKEN = 126


def text_config(**overrides: Any) -> LlamaConfig:
    """A language model of two layers that attends by groups."""
    shape: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tiny.PAD_TOKEN,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    return LlamaConfig(**{**shape, **overrides})


def build(model_class: Any, config: Any, towers: tuple[str, ...], attention: str = "sdpa", seed: int = 0) -> Any:
    """A random model whose towers attend sharply enough for the schedule to cut, and whose answers differ."""
    torch.manual_seed(seed)
    model = model_class._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            in_tower = any(f"{tower}." in name for tower in towers)
            if in_tower and ("q_proj.weight" in name or "k_proj.weight" in name):
                parameter.normal_(0.0, 0.5)
            elif "class_embedding" in name or "cls_token" in name or "image_newline" in name:
                parameter.normal_(0.0, 1.0)
            elif not in_tower and "weight" in name and parameter.dim() == 2:
                parameter.normal_(0.0, 0.2)
    return model


def prompt(blocks: list[tuple[int, int]], words: int = 5, seed: int = 0) -> list[int]:
    """Token ids: some words, then for every ``(token, count)`` a block of placeholders followed by words."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = [1, *torch.randint(3, 120, (3,), generator=generator).tolist()]
    for token, count in blocks or [(0, 0)]:
        tokens += [token] * count + torch.randint(3, 120, (words,), generator=generator).tolist()
    return tokens


def collate(samples: list[Sample], side: str = "left") -> dict[str, Tensor]:
    """Samples as a padded batch; their other tensors are laid end to end."""
    inputs = tiny.batch([sample["input_ids"] for sample in samples], side)
    for name in sorted({name for sample in samples for name in sample} - {"input_ids"}):
        inputs[name] = torch.cat([sample[name] for sample in samples if name in sample])
    return inputs


Collate = Callable[..., dict[str, Tensor]]


@torch.no_grad()
def check_batch(model: Any, samples: list[Sample], method: FlowCut, together: Collate = collate) -> None:
    """A batch gives what single runs give: kept patches, logits, generated tokens; with and without a cache."""
    method = replace(method, outputs="kept")
    # A random model may well answer with a placeholder, which without a cache asks for one more image.
    placeholders = [tiny.IMAGE_TOKEN, VIDEO_TOKEN]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": placeholders}
    with attach(model, method) as handle:
        kept, logits, answers = [], [], []
        for sample in samples:
            inputs = together([sample])
            logits.append(model(**inputs).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
            answers.append(model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist())
            uncached = model.generate(**inputs, **options, use_cache=False)[0, inputs["input_ids"].shape[1] :]
            assert uncached.tolist() == answers[-1]
        for side in ("left", "right"):
            inputs = together(samples, side)
            batched = model(**inputs).logits
            assert sorted(image.kept.tolist() for image in handle.trace.images) == sorted(kept)
            assert any(len(image.kept) < image.patches for image in handle.trace.images)
            assert handle.trace.sequence is not None
            mask = handle.trace.sequence.attention_mask.bool()
            for row, single in enumerate(logits):
                torch.testing.assert_close(batched[row][mask[row]], single, rtol=1e-5, atol=1e-5)
        inputs = together(samples)
        for use_cache in (True, False):
            generated = model.generate(**inputs, **options, use_cache=use_cache)[:, inputs["input_ids"].shape[1] :]
            padded = [answer + [tiny.PAD_TOKEN] * (generated.shape[1] - len(answer)) for answer in answers]
            assert generated.tolist() == padded
        options |= {"max_new_tokens": 3, "num_beams": 2}
        beams = model.generate(**inputs, **options)
        alone = model.generate(**together(samples[:1]), **options)
        assert beams[0, -3:].tolist() == alone[0, -3:].tolist()


@torch.no_grad()
def check_uncut(model: Any, inputs: dict[str, Tensor]) -> None:
    """Budgets that cover everything change no bit of the logits."""
    expected = model(**inputs).logits
    for budget in ({"retain_ratio": 1.0}, {"target_num": 2000}):
        with attach(model, FlowCut(**budget)) as handle:
            assert torch.equal(model(**inputs).logits, expected)
            assert handle.trace.images and all(image.whole for image in handle.trace.images)


@torch.no_grad()
def check_detach(model: Any, inputs: dict[str, Tensor], method: FlowCut) -> None:
    """Detaching leaves neither hooks nor attributes nor registry entries, and the same logits as before."""
    method = replace(method, outputs="kept")
    expected = model(**inputs).logits
    before, registry = fingerprint(model), registered()
    with attach(model, method):
        assert model(**inputs).logits.shape[1] < expected.shape[1]
    assert fingerprint(model) == before
    assert registered() == registry
    assert torch.equal(model(**inputs).logits, expected)


def registered() -> set[str]:
    """Names of the attention implementations, without those of attached models that are garbage by now."""
    gc.collect()
    return set(ALL_ATTENTION_FUNCTIONS)


def check_loss(model: Any, inputs: dict[str, Tensor], method: FlowCut) -> None:
    """Labels of the uncut length give the loss over the columns that are left, and gradients."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with attach(model, replace(method, outputs="kept")) as handle:
        output = model(**inputs, labels=labels)
        assert handle.trace.sequence is not None
        columns = handle.trace.sequence.output_columns
        kept = labels.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -100)
        expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), kept[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    model.zero_grad(set_to_none=True)


def check_checkpointing(model: Any, inputs: dict[str, Tensor], method: FlowCut, reentrant: bool = False) -> None:
    """Gradient checkpointing, switched on while attached, repeats the cuts and changes no gradient."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    with attach(model.train(), method) as handle:
        expected = gradients()
        kept = [image.kept.tolist() for image in handle.trace.images]
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        found = gradients()
        assert [image.kept.tolist() for image in handle.trace.images] == kept
        assert any(len(image.kept) < image.patches for image in handle.trace.images)
    functions = {id(vars(module).get("_gradient_checkpointing_func")) for module in model.modules()}
    assert len(functions - {id(None)}) == 1, "transformers' own function is back in every layer"
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def check_flops(model: Any, inputs: dict[str, Tensor], method: FlowCut) -> None:
    """Our count against torch's, which also sees the scoring; the model must compute its attention eagerly."""
    _, parts = find_parts(model)
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    towers: list[nn.Module] = [tower.module for tower in parts.towers]
    projectors = [parts.projector]
    if parts.tower.packing is not None:
        # The mergers sit inside such a tower.
        towers = [parts.tower.module.get_submodule("patch_embed"), *parts.tower.layers]
        projectors += parts.tower.packing.deepstack

    def counted() -> list[int]:
        with FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False)
        counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
        return [
            sum(counts.get(names[module], 0) for module in modules)
            for modules in (towers, projectors, [parts.language_model])
        ]

    uncut = counted()
    with attach(model, method) as handle:
        cut = counted()
        sequence = handle.trace.sequence
    assert sequence is not None
    for ours, theirs in ((sequence.flops[0], cut), (sequence.uncut_flops[0], uncut)):
        # torch also sees the scoring (one row for each layer), and rotary frequencies.
        assert ours.tower == pytest.approx(theirs[0], rel=0.06)
        assert ours.projector == theirs[1]
        assert ours.prefill == pytest.approx(theirs[2], rel=0.02)
    assert sequence.flops[0].total < sequence.uncut_flops[0].total


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything on the model that attaching could leave behind."""
    return {
        name: (
            sorted(vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            id(getattr(module, "config", None)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }
