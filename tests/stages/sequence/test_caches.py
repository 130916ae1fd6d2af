"""Caches of other kinds: static, offloaded and quantized ones generate what the dynamic cache does, on cut prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import families
import pytest
import tiny
import tiny_qwen
import torch
import zoo
from renamed import CACHE
from torch import Tensor
from transformers import QuantizedCache, SmolVLMConfig, SmolVLMForConditionalGeneration, StaticCache
from transformers.cache_utils import StaticLayer

from flowcut import DivPrune, FastV, FlowCut, Method, PyramidDrop, attach

CUTS: dict[str, Callable[..., Method]] = {"tower": FlowCut, "projector": DivPrune, "decoder": FastV}
BUDGET = 9
SILENT = [2, tiny.IMAGE_TOKEN, families.VIDEO_TOKEN, tiny_qwen.IMAGE, tiny_qwen.VIDEO]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3},
}
EVERYTHING = ("llava, clip", "llava_next", "qwen2_5_vl", "smolvlm")
"""The families of which every kind of cut is tried in every mode."""


@cache
def case(name: str) -> zoo.Case:
    """A model and two prompts of different lengths."""
    if name != "smolvlm":
        return zoo.case(name)
    made = zoo.idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration)
    longer = {**made.samples[0], "input_ids": [*made.samples[0]["input_ids"], 11, 12, 13]}
    return zoo.Case(made.model, [longer, *made.samples[1:]], made.together)


def padded(name: str) -> dict[str, Tensor]:
    """The batch of a case; one of its rows is padded."""
    inputs = case(name).together(case(name).samples)
    assert not inputs["attention_mask"].all()
    return inputs


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """The whole answer to a call of ``generate()``, always from the same seed."""
    torch.manual_seed(3)
    settings = {"max_new_tokens": 5, "suppress_tokens": SILENT, "return_dict_in_generate": True, **options}
    return model.generate(**inputs, **settings)


def lengths(cache: Any) -> list[int]:
    """What a static cache reserves in every layer."""
    return [layer.max_cache_len for layer in cache.layers]


@pytest.mark.parametrize("stage", CUTS)
@pytest.mark.parametrize("name", EVERYTHING)
@torch.no_grad()
def test_a_static_cache_gives_the_tokens_of_the_dynamic_one(name: str, stage: str) -> None:
    model, inputs = case(name).model, padded(name)
    for mode, options in MODES.items():
        with attach(model, CUTS[stage](target_num=BUDGET)) as handle:
            expected = generated(model, inputs, **options).sequences
            static = generated(model, inputs, **options, cache_implementation="static")
            sequence = handle.trace.sequence
        assert torch.equal(static.sequences, expected), mode
        assert sequence is not None
        uncut = inputs["input_ids"].shape[1] + 4
        needed = [stretch.cut.index.shape[1] + 4 for stretch in sequence.stretches]
        layers = [needed[sum(layer >= first for first in sequence.stretch_layers)] for layer in range(zoo.DEPTH)]
        assert lengths(static[CACHE]) == layers, "no more is reserved than the cut prompt and its answer need"
        assert max(needed[-1:]) < uncut


@pytest.mark.parametrize("name", sorted(set(zoo.CASES) - set(EVERYTHING)))
@torch.no_grad()
def test_every_other_family_on_a_static_cache(name: str) -> None:
    model, inputs = case(name).model, case(name).together(case(name).samples)
    with attach(model, FlowCut(target_num=BUDGET)):
        expected = generated(model, inputs, do_sample=False).sequences
        static = generated(model, inputs, do_sample=False, cache_implementation="static").sequences
    assert torch.equal(static, expected)


def one_picture(words: int = 6) -> dict[str, Any]:
    """A prompt with one picture."""
    return {**tiny.batch([tiny.prompt(1, words, 1)]), "pixel_values": tiny.pictures(1)}


@torch.no_grad()
def test_what_generate_reserves_grows_and_never_shrinks() -> None:
    model: Any = tiny.tiny_model()
    with attach(model, FlowCut(target_num=BUDGET)):
        long, short = (generated(model, one_picture(words), cache_implementation="static") for words in (9, 4))
        assert lengths(long[CACHE]) == lengths(short[CACHE]) == [3 + BUDGET + 9 + 4] * 2
    assert lengths(generated(model, one_picture(9), cache_implementation="static")[CACHE]) == [3 + 36 + 9 + 4] * 2


@torch.no_grad()
def test_text_alone_on_a_static_cache_is_that_of_the_uncut_model() -> None:
    model: Any = tiny.tiny_model()
    inputs = tiny.batch([tiny.prompt(0, 7, 1), tiny.prompt(0, 4, 2)])
    expected = generated(model, inputs, cache_implementation="static").sequences
    with attach(model, FlowCut(target_num=BUDGET)) as handle:
        assert torch.equal(generated(model, inputs, cache_implementation="static").sequences, expected)
        assert handle.trace.images == []


@pytest.mark.parametrize("method", [FlowCut(target_num=BUDGET), FastV(target_num=BUDGET)], ids=["tower", "decoder"])
@torch.no_grad()
def test_a_cache_of_the_callers_own_keeps_its_length_and_goes_on(method: Method) -> None:
    """Step by step through ``forward``, then cropped, then continued with several tokens, then begun anew."""
    if not hasattr(StaticLayer, "crop"):
        pytest.skip("this transformers cannot crop a static cache")
    model = zoo.case("llava, clip").model
    inputs = one_picture()
    later = torch.tensor([[5, 6, 7]])
    with attach(model, method):
        found = {}
        for kind in ("dynamic", "static"):
            own: Any = StaticCache(config=model.config.text_config, max_cache_len=64) if kind == "static" else None
            answer = model(**inputs, use_cache=True, **({CACHE: own} if own is not None else {}))
            logits, cached = [answer.logits[:, -1]], answer[CACHE]
            logits += [model(input_ids=later[:, :1], **{CACHE: cached}).logits[:, -1]]
            logits += [model(input_ids=later[:, 1:], **{CACHE: cached}).logits[:, -1]]
            cached.crop(-2)
            copied = copy.deepcopy(cached)
            for one in (cached, copied):
                logits += [model(input_ids=later[:, 1:], **{CACHE: one}).logits[:, -1]]
            copied.crop(-1)
            logits += [model(input_ids=later[:, 2:], **{CACHE: copied}).logits[:, -1]]
            cached.reset()
            logits += [model(**inputs, **{CACHE: cached}).logits[:, -1]]
            found[kind] = torch.cat(logits)
        assert lengths(own) == [64] * zoo.DEPTH
    torch.testing.assert_close(found["static"], found["dynamic"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["static"][2:3].expand(4, -1), found["static"][[2, 3, 4, 5]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["static"][6], found["static"][0], rtol=1e-4, atol=1e-5)


class Stream:
    """Stands for a stream of a GPU: everything happens at once."""

    def wait_stream(self, other: Stream) -> None:
        """Nothing to wait for."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        """The block is through."""


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
@torch.no_grad()
def test_an_offloaded_cache(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = case("llava, clip").model, padded("llava, clip")
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    for method in (FlowCut(target_num=BUDGET), FastV(target_num=BUDGET)):
        with attach(model, method):
            expected = generated(model, inputs, do_sample=False).sequences
            found = generated(model, inputs, do_sample=False, cache_implementation=kind)
        assert found[CACHE].offloading
        assert torch.equal(found.sequences, expected)


GROUPS: dict[str, dict[str, Any]] = {
    "fp8": {},
    "quanto": {"q_group_size": 8},
    "hqq": {"q_group_size": 8, "axis_key": 1, "axis_value": 1},
}
"""What the libraries that quantize need to be told of heads as small as these."""


@pytest.mark.parametrize("backend", GROUPS)
@torch.no_grad()
def test_a_quantized_cache_holds_the_kept_tokens_alone(backend: str) -> None:
    """The tokens are those of the language model by itself, on the kept tokens and a quantized cache of its own."""
    if backend != "fp8":
        pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    model: Any = tiny.tiny_model()
    config = model.config.text_config
    try:
        by_hand = QuantizedCache(backend, config, **GROUPS[backend])
    except ValueError:
        pytest.skip("this transformers quantizes caches with quanto and hqq only")
    inputs = one_picture()
    with attach(model, FlowCut(target_num=BUDGET)) as handle:
        settings = {"backend": backend, **GROUPS[backend]}
        answer = generated(model, inputs, do_sample=False, cache_implementation="quantized", cache_config=settings)
        kept = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        columns = handle.trace.sequence.columns[0] if handle.trace.sequence is not None else torch.empty(0)
    embeds = model.get_input_embeddings()(inputs["input_ids"])[:, columns]
    embeds[inputs["input_ids"][:, columns] == tiny.IMAGE_TOKEN] = kept
    expected: list[int] = []
    for _ in range(5):
        states = model.model.language_model(inputs_embeds=embeds, **{CACHE: by_hand}).last_hidden_state
        scores = model.lm_head(states[0, -1])
        scores[[token for token in SILENT if token < len(scores)]] = -torch.inf
        expected.append(int(scores.argmax()))
        embeds = model.get_input_embeddings()(torch.tensor([expected[-1:]]))
    assert answer.sequences[0, inputs["input_ids"].shape[1] :].tolist() == expected
    assert answer[CACHE].get_seq_length() == len(columns) + 4


@torch.no_grad()
def test_transformers_itself_says_which_library_is_missing() -> None:
    if find_spec("hqq") is not None:
        pytest.skip("hqq is installed")
    model, inputs = tiny.tiny_model(), one_picture()
    with attach(model, FlowCut(target_num=BUDGET)):
        expected = generated(model, inputs, do_sample=False).sequences
        with pytest.raises(ImportError, match="hqq"):
            generated(model, inputs, cache_implementation="quantized", cache_config={"backend": "hqq"})
        assert torch.equal(generated(model, inputs, do_sample=False).sequences, expected), "nothing is left behind"


@torch.no_grad()
def test_cuts_in_several_layers_on_a_static_cache() -> None:
    model, inputs = zoo.case("llava, clip").model, padded("llava, clip")
    with attach(model, PyramidDrop(target_num=BUDGET, layers=(1, 3))):
        expected = generated(model, inputs, do_sample=False).sequences
        static = generated(model, inputs, do_sample=False, cache_implementation="static")
    assert torch.equal(static.sequences, expected)
    assert len(set(lengths(static[CACHE]))) == 3
