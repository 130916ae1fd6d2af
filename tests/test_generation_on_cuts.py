"""Unusual calls of an attached model: decoding by guesses, conversations, packed rows, copies and replicas of it.

Whatever a pass is handed beyond the prompt never chooses what is cut, and every argument that transformers slices by
the cache's length agrees with the uncut length.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import families
import oracle
import pytest
import tiny
import tiny_qwen
import torch
import zoo
from renamed import CACHE
from torch import Tensor, nn
from transformers import DynamicCache

from flowcut import DivPrune, FastV, FlowCut, FlowCutError, Method, attach, detach
from flowcut.models import find_parts

CUTS: dict[str, Callable[..., Method]] = {"tower": FlowCut, "projector": DivPrune, "decoder": FastV}
BUDGET = 12
EVERY = [pytest.param(stage, name, id=f"{stage}-{name}") for name in zoo.CASES for stage in CUTS]
every_cut_of_every_family = pytest.mark.parametrize(("stage", "name"), EVERY)

# A random model may well answer with a placeholder, which asks for one more image, or with an end.
SILENT = [2, tiny.IMAGE_TOKEN, families.VIDEO_TOKEN, tiny_qwen.IMAGE, tiny_qwen.VIDEO]
GREEDY: dict[str, Any] = {"do_sample": False, "suppress_tokens": SILENT}
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def method_of(stage: str) -> Method:
    """The method that cuts at a stage."""
    return CUTS[stage](target_num=BUDGET)


def with_text(inputs: dict[str, Tensor], text: Tensor) -> dict[str, Tensor]:
    """A batch with the tokens ``text`` ``[B, T]`` behind every row."""
    ids = inputs["input_ids"]
    longer = {**inputs, "input_ids": torch.cat([ids, text], dim=1)}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(text)], dim=1)
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(text).to(kinds)], dim=1)
    return longer


def moved(model: Any, by: float = 0.02) -> Any:
    """A copy with slightly other weights."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


class Counted:
    """Counts how many passes see more than one column, and how many columns in all."""

    def __init__(self, model: Any) -> None:
        self.widths: list[int] = []
        self.hook = find_parts(model)[1].language_model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.widths.append(kwargs["inputs_embeds"].shape[1])


def repeated(name: str) -> dict[str, Tensor]:
    """One sample whose text says everything three times, so that looking up n-grams finds candidates at once."""
    case = zoo.case(name)
    inputs = case.together(case.samples[:1])
    tail = inputs["input_ids"][:, -4:]
    return with_text(inputs, torch.cat([tail, tail], dim=1))


@every_cut_of_every_family
@torch.no_grad()
def test_prompt_lookup_gives_the_tokens_of_plain_greedy(stage: str, name: str) -> None:
    model, inputs = zoo.case(name).model, repeated(name)
    with attach(model, method_of(stage)) as handle:
        expected = model.generate(**inputs, **GREEDY, max_new_tokens=8)
        kept = [image.kept.tolist() for image in handle.trace.images]
        counted = Counted(model)
        found = model.generate(**inputs, **GREEDY, max_new_tokens=8, prompt_lookup_num_tokens=3)
        counted.hook.remove()
        assert [image.kept.tolist() for image in handle.trace.images] == kept
        assert handle.trace.sequence is not None
    assert torch.equal(found, expected)
    assert counted.widths[0] > handle.trace.sequence.columns.shape[1] - 1, "the first pass had candidates"


@every_cut_of_every_family
@torch.no_grad()
def test_an_assistant_gives_the_tokens_of_plain_greedy(stage: str, name: str) -> None:
    case = zoo.case(name)
    model, inputs, assistant = case.model, case.together(case.samples[:1]), assistant_of(name)
    options: dict[str, Any] = {**GREEDY, "max_new_tokens": 8}
    with attach(model, method_of(stage)):
        expected = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected), "uncut assistant"
        with attach(assistant, method_of(stage)):
            assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected)


@cache
def assistant_of(name: str) -> Any:
    """A model whose guesses are sometimes right."""
    return moved(zoo.case(name).model)


@every_cut_of_every_family
@torch.no_grad()
def test_a_conversation_goes_on_from_the_cut_cache(stage: str, name: str) -> None:
    for form in FORMS if name in QWEN else FORMS[:1]:
        check_conversation(zoo.case(name), method_of(stage), form)


FORMS: tuple[tuple[str, ...], ...] = (
    (),
    ("mm_token_type_ids",),
    ("image_grid_thw", "video_grid_thw"),
    ("mm_token_type_ids", "image_grid_thw", "video_grid_thw"),
)
"""What a caller may pass again in the second turn, as the processor made it for the whole conversation."""


def check_conversation(case: zoo.Case, method: Method, form: tuple[str, ...], first: int = 3, second: int = 4) -> None:
    """The second answer is the most likely one behind the kept tokens of the first prompt and all that followed."""
    model, inputs = case.model, case.together(case.samples)
    text = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]])
    with attach(model, method) as handle:
        encoded = oracle.encode(model, inputs)
        cached = DynamicCache(config=model.config.get_text_config())
        answer = model.generate(**inputs, **GREEDY, max_new_tokens=first, **{CACHE: cached})
        trace = handle.trace
        answer = answer[:, inputs["input_ids"].shape[1] :]
        asked = with_text(inputs, torch.cat([answer, text], dim=1))
        given = {key: asked[key] for key in ("input_ids", "attention_mask", *form) if key in asked}
        found = model.generate(**given, **GREEDY, max_new_tokens=second, **{CACHE: cached})
    behind = found[:, inputs["input_ids"].shape[1] :]
    rows = oracle.compute(model, method, inputs, encoded, trace, behind)
    for row, own in enumerate(rows):
        logits = own.logits[-second - 1 : -1]
        allowed = [token for token in SILENT if token < logits.shape[1]]
        expected = logits.index_fill(1, torch.tensor(allowed), -1e9).argmax(dim=1)
        assert behind[row, -second:].tolist() == expected.tolist(), f"sample {row}, passed again: {form}"


@pytest.mark.parametrize("name", ["llava, clip", "llava_next", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_a_conversation_goes_on_from_a_cache_that_prompt_lookup_cropped(stage: str, name: str) -> None:
    model, inputs = zoo.case(name).model, repeated(name)
    given = {"input_ids", "attention_mask", "mm_token_type_ids"} & inputs.keys()
    answers = []
    with attach(model, method_of(stage)):
        for options in ({}, {"prompt_lookup_num_tokens": 3}):
            cached = DynamicCache(config=model.config.get_text_config())
            first = model.generate(**inputs, **GREEDY, max_new_tokens=4, **{CACHE: cached}, **options)
            told = torch.cat([first[:, inputs["input_ids"].shape[1] :], inputs["input_ids"][:, -8:]], dim=1)
            asked = with_text(inputs, told)
            turn = {key: asked[key] for key in given}
            answers.append(model.generate(**turn, **GREEDY, max_new_tokens=4, **{CACHE: cached}))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", [name for name in zoo.CASES if name not in QWEN])
@pytest.mark.parametrize("stage", ["tower", "projector"])
@torch.no_grad()
def test_a_conversation_takes_up_another_image(stage: str, name: str) -> None:
    case = zoo.case(name)
    model, first, second = case.model, case.together(case.samples[:1]), case.together(case.samples[1:])
    method = FlowCut(target_num=BUDGET, decoder_layer=None) if stage == "tower" else DivPrune(target_num=BUDGET)
    with attach(model, method):
        cached = DynamicCache(config=model.config.get_text_config())
        answer = model.generate(**first, **GREEDY, max_new_tokens=3, **{CACHE: cached})
        ids = torch.cat([answer, second["input_ids"]], dim=1)
        asked = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = model.generate(**asked, **GREEDY, max_new_tokens=4, **{CACHE: cached})
        whole = {**asked, **images_of_both(case)}
        expected = model.generate(**whole, **GREEDY, max_new_tokens=4)
    assert torch.equal(found, expected)


def images_of_both(case: zoo.Case) -> dict[str, Tensor]:
    """The images of both samples for one row."""
    both = case.together(case.samples)
    pixels = {key: value for key, value in both.items() if key not in ("input_ids", "attention_mask")}
    if "pixel_attention_mask" in pixels:
        # Its images stand side by side in one row of samples.
        pixels = {key: value.transpose(0, 1) for key, value in pixels.items()}
    return pixels


def packed(name: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Both samples in one row, told apart by positions that begin again, without a mask; and each by itself."""
    case = zoo.case(name)
    singles = [case.together([sample]) for sample in case.samples]
    row = images_of_both(case)
    row.pop("mm_token_type_ids", None)
    row["input_ids"] = torch.cat([single["input_ids"] for single in singles], dim=1)
    row["position_ids"] = torch.cat([torch.arange(single["input_ids"].shape[1]) for single in singles])[None]
    if name in QWEN:
        places_of: Any = case.model.model.get_rope_index
        accepted = inspect.signature(places_of).parameters
        places = [places_of(**{key: single.get(key) for key in accepted})[0] for single in singles]
        row["position_ids"] = torch.cat([row["position_ids"][None], torch.cat(places, dim=-1)])
    return row, singles


@every_cut_of_every_family
@torch.no_grad()
def test_packed_rows_give_what_their_samples_give_or_are_refused(stage: str, name: str) -> None:
    model = zoo.case(name).model
    row, singles = packed(name)
    uncut = [model(**single).logits[0] for single in singles]
    oracle.close(model(**row, use_cache=False).logits[0], torch.cat(uncut), "uncut")
    with attach(model, CUTS[stage](retain_ratio=1.0)):
        oracle.close(model(**row, use_cache=False).logits[0], torch.cat(uncut), "full budget")
    with attach(model, method_of(stage)):
        expected = [model(**single).logits[0] for single in singles]
        try:
            found = model(**row, use_cache=False).logits[0]
        except FlowCutError as error:
            assert "packed" in str(error)
            return
    oracle.close(found, torch.cat(expected), "packed")


def replica(model: nn.Module, weights: nn.Module) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` makes of ``model`` on another device: here the ``weights`` are others."""
    originals, others = list(model.modules()), list(weights.modules())
    number = {module: index for index, module in enumerate(originals)}
    copies: list[Any] = [module._replicate_for_data_parallel() for module in originals]
    for original, other, made in zip(originals, others, copies, strict=True):
        for name, child in original._modules.items():
            if child is None:
                made._modules[name] = None
            else:
                setattr(made, name, copies[number[child]])
        for name, parameter in other._parameters.items():
            if parameter is None:
                made._parameters[name] = None
            else:
                setattr(made, name, parameter.detach().clone().requires_grad_())
        for name, buffer in other._buffers.items():
            if buffer is None:
                made._buffers[name] = None
            else:
                setattr(made, name, buffer.clone())
    first: nn.Module = copies[0]
    return first


REPLICABLE = [name for name in zoo.CASES if name.startswith(("llava", "video_llava"))]
"""transformers itself asks a replica of the others for its first parameter, which it does not have."""


@pytest.mark.parametrize("name", REPLICABLE)
@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_replicas_compute_with_their_own_weights_or_raise(stage: str, name: str) -> None:
    case = zoo.case(name)
    model, others = case.model, [moved(case.model, 0.01), assistant_of(name)]
    inputs = [case.together([sample]) for sample in case.samples]
    expected = []
    for other, given in zip(others, inputs, strict=True):
        assert torch.equal(replica(model, other)(**given).logits, other(**given).logits), "uncut replicas are exact"
        with attach(other, method_of(stage)):
            expected.append(other(**given).logits)
    with attach(model, method_of(stage)):
        before = model(**inputs[0]).logits
        replicas = [replica(model, other) for other in others]

        def run(number: int) -> Tensor:
            with torch.no_grad():
                logits: Tensor = replicas[number](**inputs[number]).logits
                return logits

        try:
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(run, range(2)))
        except FlowCutError as error:
            assert "DataParallel" in str(error)
            return
        assert torch.equal(model(**inputs[0]).logits, before)
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.shape == wanted.shape
        oracle.close(ours, wanted, "replica")


def twin(model: Any) -> Any:
    """An unattached model with the same weights, without anything that calls left on it."""
    other = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="sdpa").eval()
    other.generation_config = copy.deepcopy(model.generation_config)
    other.load_state_dict(model.state_dict())
    return other


@every_cut_of_every_family
@torch.no_grad()
def test_a_deep_copy_is_attached_by_itself(stage: str, name: str) -> None:
    case = zoo.case(name)
    model, inputs = case.model, case.together(case.samples)
    with attach(model, method_of(stage)):
        expected = model(**inputs).logits
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**inputs).logits, expected)
        torch.manual_seed(3)
        for parameter in copied.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        fresh = twin(copied)
        with attach(fresh, method_of(stage)):
            assert torch.equal(copied(**inputs).logits, fresh(**inputs).logits), "a copy runs its own weights"
        assert torch.equal(model(**inputs).logits, expected)
        detach(copied)
        assert torch.equal(copied(**inputs).logits, fresh(**inputs).logits), "something is left on the copy"
        assert torch.equal(model(**inputs).logits, expected), "the copy's detach() took the method off the original"


@every_cut_of_every_family
@torch.no_grad()
def test_pickling_is_refused_with_what_to_do_and_works_behind_detach(stage: str, name: str) -> None:
    case = zoo.case(name)
    # A model that was called has hooks of transformers that cannot be pickled, attached or not.
    model, inputs = twin(case.model), case.together(case.samples)
    with attach(model, method_of(stage)), pytest.raises(FlowCutError, match="detach"):
        pickle.dumps(model)
    loaded = pickle.loads(pickle.dumps(model))
    with attach(model, method_of(stage)), attach(loaded, method_of(stage)):
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@every_cut_of_every_family
@torch.no_grad()
def test_at_full_budget_every_kind_of_generation_is_the_uncut_models(stage: str, name: str) -> None:
    case = zoo.case(name)
    model, inputs, one = case.model, case.together(case.samples), repeated(name)

    def everything() -> list[Tensor]:
        cached = DynamicCache(config=model.config.get_text_config())
        first = model.generate(**inputs, **GREEDY, max_new_tokens=3, **{CACHE: cached})
        asked = with_text(inputs, torch.cat([first[:, inputs["input_ids"].shape[1] :], first[:, -2:]], dim=1))
        turn = {key: asked[key] for key in ("input_ids", "attention_mask", "mm_token_type_ids") if key in asked}
        found = [
            first,
            model.generate(**turn, **GREEDY, max_new_tokens=3, **{CACHE: cached}),
            model.generate(**one, **GREEDY, max_new_tokens=5, prompt_lookup_num_tokens=3),
            model.generate(**one, **GREEDY, max_new_tokens=5, assistant_model=assistant_of(name)),
        ]
        if name in REPLICABLE:
            found.append(replica(model, assistant_of(name))(**inputs).logits)
        return found

    model(**inputs)
    expected = everything()
    with attach(model, type(method_of(stage))(retain_ratio=1.0)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(everything(), expected, strict=True))
