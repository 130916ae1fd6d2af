"""Compiled models, attached: a step of decoding is one graph, and a prompt's pass ends graphs where it decides."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import CompileConfig

from flowcut import FastV, FlowCut, FlowCutError, Method, attach

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def inputs() -> dict[str, Any]:
    """Two prompts with a picture each, one padded."""
    return {**tiny.batch([tiny.prompt(1, 5, 1), tiny.prompt(1, 9, 2)]), "pixel_values": tiny.pictures(2)}


def as_generate_compiles() -> CompileConfig:
    """transformers' own compiling of decoding, here on a CPU, traced without generating code; breaks are errors."""
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize("method", [FlowCut(target_num=9), FastV(target_num=9, layers=1)], ids=["tower", "decoder"])
@torch.no_grad()
def test_a_step_of_decoding_compiles_into_one_graph(method: Method) -> None:
    model: Any = tiny.tiny_model()
    with attach(model, method):
        expected = model.generate(**inputs(), **OPTIONS)
        torch.compiler.reset()
        compiled = model.generate(
            **inputs(), **OPTIONS, cache_implementation="static", compile_config=as_generate_compiles()
        )
        assert torch.equal(compiled, expected)
        assert hasattr(model, "_compiled_call"), "it was compiled"


@pytest.mark.parametrize("first", ["compiled", "attached"])
@torch.no_grad()
def test_a_compiled_forward(first: str) -> None:
    model: Any = tiny.tiny_model()
    given = inputs()
    uncut = model(**given).logits
    with attach(model, FlowCut(target_num=9)):
        expected = model(**given).logits
    torch.compiler.reset()
    handle = attach(model, FlowCut(target_num=9)) if first == "attached" else None
    model.forward = torch.compile(model.forward, backend="eager")
    if handle is None:
        torch.testing.assert_close(model(**given).logits, uncut, rtol=1e-5, atol=1e-5)
        handle = attach(model, FlowCut(target_num=9))
    torch.testing.assert_close(model(**given).logits, expected, rtol=1e-5, atol=1e-5)
    handle.detach()
    torch.testing.assert_close(model(**given).logits, uncut, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "first"), [(FlowCut(target_num=9), "compiled"), (FastV(target_num=9, layers=1), "attached")]
)
@torch.no_grad()
def test_a_compiled_language_model_in_the_place_of_the_model_s_own(method: Method, first: str) -> None:
    model: Any = tiny.tiny_model()
    own, given, options = model.model.language_model, inputs(), {**OPTIONS, "max_new_tokens": 2}
    uncut = model(**given).logits
    with attach(model, method):
        expected, answer = model(**given).logits, model.generate(**given, **options)
    torch.compiler.reset()
    handle = attach(model, method) if first == "attached" else None
    model.model.language_model = torch.compile(own, backend="eager")
    if handle is None:
        torch.testing.assert_close(model(**given).logits, uncut, rtol=1e-5, atol=1e-5)
        handle = attach(model, method)
    torch.testing.assert_close(model(**given).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(**given, **options), answer)
    handle.detach()
    torch.testing.assert_close(model(**given).logits, uncut, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_compiled_model_around_an_attached_one() -> None:
    model: Any = tiny.tiny_model()
    given = inputs()
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="eager")
    with pytest.raises(FlowCutError, match="_orig_mod"):
        attach(compiled, FlowCut(target_num=9))
    with attach(compiled._orig_mod, FlowCut(target_num=9)):
        expected = model(**given).logits
        torch.testing.assert_close(compiled(**given).logits, expected, rtol=1e-5, atol=1e-5)
