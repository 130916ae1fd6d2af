"""Attaching and detaching: transparent, local to one model, exact where there is nothing to cut."""

from __future__ import annotations

import copy
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import fingerprint
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut import FlowCut, FlowCutError, attach, detach, flowcut


def inputs_for(images: int = 1, seed: int = 0, placeholders: int = tiny.PATCHES) -> dict[str, Tensor]:
    prompt = tiny.prompt(images, seed=seed, placeholders=placeholders)
    return {**tiny.batch([prompt]), "pixel_values": tiny.pictures(images, seed)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", sorted(tiny.TOWERS))
@torch.no_grad()
def test_detach_leaves_nothing_behind(tower: str, attention: str) -> None:
    model, untouched = (
        tiny.tiny_model(tower, attention=attention),
        tiny.tiny_model(tower, attention=attention),
    )
    inputs = inputs_for(placeholders=tiny.placeholders_of(model))
    # transformers installs its recorders of hidden states at the first pass, attached or not.
    model.get_image_features(inputs["pixel_values"])
    before = fingerprint(model)
    gc.collect()
    registry = set(ALL_ATTENTION_FUNCTIONS)
    with attach(model, FlowCut(target_num=9, outputs="kept")) as handle:
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1] - tiny.placeholders_of(model) + 9
        assert handle.attached and set(ALL_ATTENTION_FUNCTIONS) - registry == {f"flowcut_{attention}"}
    assert not handle.attached
    assert fingerprint(model) == before
    assert set(ALL_ATTENTION_FUNCTIONS) == registry
    assert torch.equal(model(**inputs).logits, untouched(**inputs).logits)
    handle.detach()


@torch.no_grad()
def test_weights_and_saved_files_do_not_change(tmp_path: Path) -> None:
    model = tiny.tiny_model()
    model.save_pretrained(tmp_path / "before")
    names = list(model.state_dict())
    flowcut(model, target_num=9)
    model(**inputs_for())
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "attached")
    files = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "attached").iterdir())
    for file in files:
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "attached" / file).read_bytes()


@torch.no_grad()
def test_a_second_model_is_not_affected() -> None:
    config = tiny.tiny_config()
    torch.manual_seed(0)
    first = type(tiny.tiny_model())(config).eval()
    second = type(first)(config).eval()
    assert first.config.vision_config is second.config.vision_config
    inputs, before = inputs_for(), fingerprint(second)
    expected = second(**inputs).logits
    before = fingerprint(second)
    attach(first, FlowCut(target_num=9, outputs="kept"))
    assert fingerprint(second) == before
    assert torch.equal(second(**inputs).logits, expected)
    assert first(**inputs).logits.shape != expected.shape


@torch.no_grad()
def test_two_attached_models_in_two_threads() -> None:
    models = [tiny.tiny_model(seed=1), tiny.tiny_model(seed=2)]
    handles = [attach(model, FlowCut(target_num=target)) for model, target in zip(models, (5, 20), strict=True)]
    inputs = [inputs_for(seed=1), inputs_for(seed=2)]
    expected = [model(**given).logits for model, given in zip(models, inputs, strict=True)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(20):
                    assert torch.equal(models[number](**inputs[number]).logits, expected[number])
                    assert len(handles[number].trace.images[0].kept) == (5, 20)[number]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("budget", [{"target_num": tiny.PATCHES}, {"target_num": 50}, {"retain_ratio": 1.0}])
@pytest.mark.parametrize("tower", sorted(tiny.TOWERS))
@pytest.mark.filterwarnings("ignore:target_num")
@torch.no_grad()
def test_a_budget_for_everything_is_exactly_the_uncut_model(tower: str, budget: dict[str, Any]) -> None:
    model = tiny.tiny_model(tower)
    inputs = inputs_for(2, placeholders=tiny.placeholders_of(model))
    if budget == {"target_num": tiny.PATCHES}:
        budget = {"target_num": tiny.placeholders_of(model)}
    expected = model(**inputs).logits
    handle = attach(model, FlowCut(**budget))
    assert torch.equal(model(**inputs).logits, expected)
    assert all(image.whole for image in handle.trace.images)


def test_a_target_that_cuts_nothing_warns() -> None:
    with pytest.warns(UserWarning, match="covers all 36 visual tokens"):
        attach(tiny.tiny_model(), FlowCut(target_num=36))


@torch.no_grad()
def test_attaching_again_replaces_the_method() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    first = attach(model, FlowCut(target_num=9))
    second = attach(model, FlowCut(target_num=5))
    assert (first.attached, second.attached) == (False, True)
    first.detach()
    assert second.attached
    model(**inputs)
    assert len(second.trace.images[0].kept) == 5
    with pytest.raises(ValueError, match="more than the model"):
        attach(model, FlowCut(target_num=10**6))
    assert second.attached
    assert detach(model) is model and not second.attached
    assert detach(model) is model


@torch.no_grad()
def test_a_deep_copy_works_on_its_own() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    handle = attach(model, FlowCut(target_num=9))
    expected = model(**inputs).logits
    copied = copy.deepcopy(model)
    handle.detach()
    assert torch.equal(copied(**inputs).logits, expected)
    uncut = model(**inputs).logits
    detach(copied)
    gc.collect()
    assert torch.equal(copied(**inputs).logits, uncut)
    assert not [name for name in ALL_ATTENTION_FUNCTIONS if name.startswith("flowcut")]


@torch.no_grad()
def test_the_attention_implementation_may_change_while_attached() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    handle = attach(model, FlowCut(target_num=9))
    model(**inputs)
    kept = handle.trace.images[0].kept
    model.set_attn_implementation("eager")
    model(**inputs)
    assert torch.equal(handle.trace.images[0].kept, kept)
    gc.collect()
    assert "flowcut_eager" in ALL_ATTENTION_FUNCTIONS and "flowcut_sdpa" not in ALL_ATTENTION_FUNCTIONS
    handle.detach()
    assert model.model.vision_tower.config._attn_implementation == "eager"


@torch.no_grad()
def test_a_failed_pass_leaves_nothing_behind() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    attach(model, FlowCut(target_num=9))
    expected = model(**inputs).logits
    layers = (model.model.vision_tower.encoder.layers[4].mlp, model.model.language_model.layers[1].mlp)
    for layer in layers:
        hook = layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("in the middle")))
        with pytest.raises(RuntimeError, match="in the middle"):
            model(**inputs)
        hook.remove()
        assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_a_base_model_without_head() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    attach(model, FlowCut(target_num=9))
    expected = model.model(**inputs).last_hidden_state
    detach(model)
    attach(model.model, FlowCut(target_num=9))
    assert torch.equal(model.model(**inputs).last_hidden_state, expected)


@torch.no_grad()
def test_torch_compile_gives_the_same_or_refuses() -> None:
    model, inputs = tiny.tiny_model(), inputs_for()
    with pytest.raises(FlowCutError, match=r"torch\.compile"):
        attach(torch.compile(model), FlowCut(target_num=9))  # type: ignore[arg-type]
    attach(model, FlowCut(target_num=9))
    expected = model(**inputs).logits
    model.model.language_model.compile(backend="eager")
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_accelerate_device_map() -> None:
    from accelerate import cpu_offload

    model, inputs = tiny.tiny_model(), inputs_for()
    attach(model, FlowCut(target_num=9))
    expected = model(**inputs).logits
    detach(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with attach(model, FlowCut(target_num=9)):
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
