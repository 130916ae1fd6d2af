"""The run behind the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from flowcut import FlowCut, attach
from flowcut.attaching import HANDLE
from flowcut.checkpoints.loading import LoadedModel
from flowcut.inputs.prompting import model_inputs
from flowcut.measure import run as under_test
from flowcut.measure.run import RunResult, generate, run

QUESTION = "what is shown?"
TARGET = 8


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    path = tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(experienced_model(), tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def result(loaded: LoadedModel, picture: Image.Image) -> RunResult:
    return run(loaded, FlowCut(target_num=TARGET), picture, QUESTION, max_new_tokens=6, repeats=2)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def experienced_model() -> LlavaForConditionalGeneration:
    """A model that has generated something: transformers leaves hooks of its own on it from then on."""
    model = tiny.tiny_model()
    model.generate(**tiny.batch([tiny.prompt()]), pixel_values=tiny.pictures(1), max_new_tokens=1)
    return model


def text_of(loaded: LoadedModel, inputs: Any) -> str:
    output = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    return loaded.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_are_the_models_own(loaded: LoadedModel, picture: Image.Image, result: RunResult) -> None:
    inputs = model_inputs(loaded.processor, picture, QUESTION)
    assert result.uncut.answer == text_of(loaded, inputs)
    with attach(loaded.model, FlowCut(target_num=TARGET)):
        assert result.cut.answer == text_of(loaded, inputs)
    assert result.cut.answer != result.uncut.answer


def test_counts(loaded: LoadedModel, picture: Image.Image, result: RunResult) -> None:
    inputs = model_inputs(loaded.processor, picture, QUESTION)
    text = inputs["input_ids"].shape[1] - tiny.PATCHES
    assert (result.uncut.visual_tokens, result.cut.visual_tokens) == (tiny.PATCHES, TARGET)
    assert (result.uncut.visual_tokens_mean, result.cut.visual_tokens_mean) == (tiny.PATCHES, TARGET)
    assert (result.uncut.kv_entries, result.cut.kv_entries) == (text + tiny.PATCHES, text + TARGET)
    with attach(loaded.model, FlowCut(target_num=TARGET)) as handle:
        loaded.model(**inputs)
        sequence = handle.trace.sequence
    assert sequence is not None
    assert (result.uncut.flops, result.cut.flops) == (sequence.uncut_flops[0], sequence.flops[0])
    assert result.images[0].kept.tolist() == sequence.images_of[0][0].kept.tolist()
    assert torch.equal(result.pixel_values, inputs["pixel_values"])


def test_seconds(result: RunResult) -> None:
    for side in (result.uncut, result.cut):
        seconds = side.seconds
        assert min(seconds.tower, seconds.prefill, seconds.decoding) > 0
        assert seconds.tower < seconds.total and seconds.decoding < seconds.total
        assert 1 <= side.new_tokens <= 6


def test_dictionary_survives_json(result: RunResult) -> None:
    report = json.loads(json.dumps(result.as_dict()))
    assert report["method"]["name"] == "flowcut" and report["method"]["target_num"] == TARGET
    image = report["images"][0]
    assert image["kept"] == result.images[0].kept.tolist() == image["kept_after_layer"]["5"]
    assert image["tokens_after_layer"] == result.images[0].tokens_after_layer
    assert report["cut"]["flops"]["total"] == result.cut.flops.total
    assert set(report["uncut"]["seconds"]) == {"tower", "prefill", "decoding", "total", "rest"}


def test_nothing_is_attached_afterwards(loaded: LoadedModel, picture: Image.Image) -> None:
    attach(loaded.model, FlowCut(target_num=3))
    result = run(loaded, FlowCut(target_num=TARGET), picture, QUESTION, max_new_tokens=1, repeats=1)
    assert result.uncut.visual_tokens == tiny.PATCHES
    assert HANDLE not in loaded.model.model.__dict__
    assert hooks(loaded.model) == hooks(experienced_model())


def test_nothing_is_attached_after_an_error(
    loaded: LoadedModel, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        assert HANDLE in loaded.model.model.__dict__
        raise KeyError("in the middle of the run")

    monkeypatch.setattr(loaded.model, "generate", broken)
    with pytest.raises(KeyError, match="in the middle"):
        run(loaded, FlowCut(target_num=TARGET), picture, QUESTION)
    assert HANDLE not in loaded.model.model.__dict__
    assert hooks(loaded.model) == hooks(experienced_model())


def test_whole_budget_changes_nothing(loaded: LoadedModel, picture: Image.Image) -> None:
    result = run(loaded, FlowCut(retain_ratio=1.0), picture, QUESTION, max_new_tokens=6, repeats=1)
    assert result.cut.answer == result.uncut.answer
    assert result.cut.visual_tokens == tiny.PATCHES and result.cut.kv_entries == result.uncut.kv_entries


def test_without_a_warm_up_the_uncut_model_answers_once_less_and_the_same(
    loaded: LoadedModel, picture: Image.Image, result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(HANDLE in vars(loaded.model.get_submodule("model")))
        return generate(*arguments)

    monkeypatch.setattr(under_test, "generate", counted)
    for warm_up, attached in ((True, [True, False, False, True]), (False, [True, False, True])):
        calls.clear()
        again = run(loaded, FlowCut(target_num=TARGET), picture, QUESTION, max_new_tokens=6, repeats=1, warm_up=warm_up)
        assert calls == attached
        assert (again.uncut.answer, again.cut.answer) == (result.uncut.answer, result.cut.answer)


def test_budget_that_does_not_fit_leaves_nothing_attached(loaded: LoadedModel, picture: Image.Image) -> None:
    attach(loaded.model, FlowCut(target_num=3))
    with pytest.raises(ValueError, match="more than the model can produce"):
        run(loaded, FlowCut(target_num=100_000), picture, QUESTION)
    assert HANDLE not in loaded.model.model.__dict__


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"max_new_tokens": 0}])
def test_bad_arguments(loaded: LoadedModel, picture: Image.Image, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        run(loaded, FlowCut(target_num=TARGET), picture, QUESTION, **arguments)
