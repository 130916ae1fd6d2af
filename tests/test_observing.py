"""Observing: the numbers are the method's own, nothing changes, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import families
import pytest
import tiny
import tiny_classes
import torch
import zoo
from torch import Tensor, nn

from flowcut import (
    FlowCut,
    FlowCutError,
    ImageFlow,
    TileFlow,
    UnsupportedModelError,
    VisionZip,
    attach,
    detach,
    observe,
)
from flowcut.algorithm.flow import share
from flowcut.algorithm.looking import attention_to_global, redundancy
from flowcut.methods.flowcut_policy import FlowCutPolicy
from flowcut.methods.views import LayerView, TowerPass
from flowcut.models import find_parts
from flowcut.stages.recording.policy import RecordingPolicy

REARRANGED = ("idefics3", "internvl", "paddleocr_vl", "mistral3", "lfm2_vl")
"""Models whose patches FlowCut brings together in groups: the tower then computes the same in another order."""

OTHERS = ("llava_next_video", "mistral3", "paddleocr_vl", "lfm2_vl")
CASES = (*zoo.CASES, *map(tiny_classes.named, OTHERS))
every_family = pytest.mark.parametrize("name", CASES)


@cache
def given(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A model of a family, and a batch of prompts with several pictures."""
    if name in zoo.CASES:
        case = zoo.case(name)
        return case.model, case.together(case.samples)
    model = tiny_classes.tiny_model(name)
    return model, tiny_classes.together(model, [tiny_classes.sample(model, name, 1, 1)])


@cache
def observed(name: str) -> list[ImageFlow]:
    """What is seen of :func:`given`."""
    model, inputs = given(name)
    with torch.no_grad(), observe(model) as flow:
        model(**inputs)
    return flow.images


def tiles_of(images: list[ImageFlow]) -> list[TileFlow]:
    return [tile for image in images for tile in image.tiles]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlowCut's own policy, which only ranks and cuts nothing, beside each that records; shown the same, compared."""
    observe_layer, finish, compared = RecordingPolicy.observe, RecordingPolicy.finish, []

    def observed(self: Any, view: LayerView) -> None:
        if not hasattr(self, "shadow"):
            rows, patches = view.query.shape[0], view.query.shape[2] - view.prefix
            tower = TowerPass(patches, (patches,) * rows, self.feature_layer, view.query.device, ranks=True)
            self.shadow = FlowCutPolicy(FlowCut(retain_ratio=1.0), tower)
        self.shadow.observe(view)
        observe_layer(self, view)

    def finished(self: Any) -> Any:
        numbers, policy = finish(self), self.shadow
        importance = policy.rank()
        last = max(policy._scores)
        if self.method.regroup is None:
            assert torch.equal(numbers.importance[:, last], importance)
        if self.method.unit == 1:
            for layer, scores in policy._scores.items():
                assert torch.equal(numbers.score[:, layer], scores)
        assert torch.equal(share(numbers.relation[:, last]), policy.relation)
        compared.append(len(importance))
        return numbers

    monkeypatch.setattr(RecordingPolicy, "observe", observed)
    monkeypatch.setattr(RecordingPolicy, "finish", finished)
    yield
    assert compared


@every_family
@torch.no_grad()
def test_the_numbers_are_those_of_the_method_that_cuts_nothing(name: str, beside: None) -> None:
    model, inputs = given(name)
    expected = model(**inputs).logits
    before = families.fingerprint(model)
    with observe(model) as flow:
        assert torch.equal(model(**inputs).logits, expected)
    assert families.fingerprint(model) == before
    check_shapes(model, inputs, flow.images)


def check_shapes(model: Any, inputs: dict[str, Tensor], images: list[ImageFlow]) -> None:
    """Every picture has its tiles, layers, patches and units; what is not padding is finite."""
    _, parts = find_parts(model)
    with attach(model, FlowCut(retain_ratio=1.0)) as handle:
        model(**inputs)
        traces = handle.trace.images
    assert [len(image.tiles) for image in images] == [len(trace.tiles) for trace in traces]
    assert [image.visual_tokens for image in images] == [trace.placeholders for trace in traces]
    for image, trace in zip(images, traces, strict=True):
        assert image.language is not None
        assert image.language.attention.shape == (len(parts.decoder_layers), image.visual_tokens)
        for tile, row in zip(image.tiles, trace.tiles, strict=True):
            assert tile.layers == len(parts.tower_of(image.modality).layers)
            assert tile.patches == row.patches * len(tile.patches_of_unit[0])
            assert sorted(tile.patches_of_unit.flatten().tolist()) == list(range(tile.patches))
            for numbers in (tile.relation, tile.semantic, tile.density, tile.score, tile.redundancy):
                assert numbers.shape == (tile.layers, tile.patches)
                assert numbers.dtype == torch.float32 and numbers.device.type == "cpu"
                inside = numbers[:, tile.patches_of_unit[tile.units].flatten()]
                assert bool(inside.isfinite().all())
            assert tile.importance.shape == (tile.layers, row.patches)
            if len(tile.units):
                assert bool(((tile.entropy_ratio > 0) & (tile.entropy_ratio <= 1.0001)).all())
                assert bool((tile.similarity.abs() <= 1.0001).all())


@pytest.mark.families
@pytest.mark.parametrize("model_type", [tiny_classes.named(model_type) for model_type in tiny_classes.TESTED])
@torch.no_grad()
def test_every_class_with_a_tower_that_can_be_cut_can_be_observed(model_type: str) -> None:
    if tiny_classes.support_of(model_type).tower:
        pytest.skip("its tower stays whole")
    model = tiny_classes.tiny_model(model_type)
    inputs = tiny_classes.together(model, [tiny_classes.sample(model, model_type, 1, 1)])
    expected = model(**inputs).logits
    with observe(model, to_global=True) as flow:
        assert torch.equal(model(**inputs).logits, expected)
    assert flow.images and flow.images[0].tiles[0].to_global is not None
    for image in flow.images:
        assert image.visual_tokens and [len(plan) for plan in image.planned(None, retain_ratio=0.5)]


@every_family
@torch.no_grad()
def test_an_attached_method_ranks_by_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single cut, behind the last layer that is scored, FlowCut sees what the uncut tower computes."""
    model, inputs = given(name)
    seen: list[Tensor] = []
    original = FlowCutPolicy._compare

    def compared(self: FlowCutPolicy) -> Tensor:
        importance = original(self)
        seen.extend(importance.unbind())
        return importance

    images = observed(name)
    monkeypatch.setattr(FlowCutPolicy, "_compare", compared)
    with attach(model, FlowCut(retain_ratio=0.4, cut_every=None)):
        model(**inputs)
    ours = [tile.importance[tile.cutting_layers[-1], tile.units] for tile in tiles_of(images)]
    assert seen
    for theirs in seen:
        if name in REARRANGED:
            assert any(len(one) == len(theirs) and torch.allclose(one, theirs, rtol=1e-4) for one in ours)
        else:
            # Windows come in another order than the rows of a picture.
            assert any(torch.equal(one.sort().values, theirs.sort().values) for one in ours)


@every_family
@torch.no_grad()
def test_the_first_planned_cut_is_the_one_that_flowcut_makes(name: str) -> None:
    model, inputs = given(name)
    budget: dict[str, Any] = {"target_num": None, "retain_ratio": 0.3}
    with attach(model, FlowCut(**budget)) as handle:
        model(**inputs)
        traces = handle.trace.images
    checked = 0
    for image, trace in zip(observed(name), traces, strict=True):
        for tile, plan, real in zip(image.tiles, image.planned(**budget), trace.tiles, strict=True):
            if not real.kept_after_layer or len(tile.units) < tile.patches // len(tile.patches_of_unit[0]):
                continue  # the tower stays whole, or a tile has padding, which leaves it with the first cut
            assert plan[-1].kept.tolist() == sorted(plan[-1].kept.tolist())
            assert len(plan[-1].kept) == len(real.kept)
            first = next(cut for cut in plan if cut.cut)
            assert first.layer == min(
                layer for layer, kept in real.kept_after_layer.items() if len(kept) < real.patches
            )
            assert first.kept.tolist() == real.kept_after_layer[first.layer].tolist()
            checked += 1
    assert checked


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
@torch.no_grad()
def test_attention_and_similarity_are_those_of_the_whole_maps(tower: str, attention: str) -> None:
    inputs = {**tiny.batch([tiny.prompt(1), tiny.prompt(2)]), "pixel_values": tiny.pictures(3)}
    whole = tiny.tiny_model(tower, attention="eager").model.vision_tower
    maps = whole(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    model = tiny.tiny_model(tower, attention=attention)
    with observe(model, to_global=True) as flow:
        model(**inputs)
    prefix = 0 if tower == "siglip" else 1
    for number, tile in enumerate(tiles_of(flow.images)):
        assert tile.global_token == ("CLS" if prefix else "mean")
        for layer in range(tile.layers):
            row = maps.attentions[layer][number].mean(dim=0)
            if prefix:
                torch.testing.assert_close(tile.relation[layer], row[0, 1:], rtol=1e-4, atol=1e-6)
                assert tile.to_global is not None
                torch.testing.assert_close(tile.to_global[layer], row[1:, 0], rtol=1e-4, atol=1e-6)
            unit = nn.functional.normalize(maps.hidden_states[layer + 1][number, prefix:], dim=-1)
            pairs = (unit @ unit.T - torch.eye(len(unit))).sum(dim=1) / (len(unit) - 1)
            torch.testing.assert_close(tile.redundancy[layer], pairs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tile.similarity[layer], pairs.mean(), rtol=1e-4, atol=1e-5)


def test_the_stand_in_gets_what_a_token_with_the_mean_key_would() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 2, 3, 7, 5, generator=generator)
    with_mean = torch.cat([key, key.mean(dim=2, keepdim=True)], dim=2)
    expected = (query @ with_mean.mT * 0.4).softmax(dim=-1)[..., -1].mean(dim=1)
    torch.testing.assert_close(attention_to_global(query, key, 0.4, prefix=0), expected)


def test_padding_and_single_patches_have_a_defined_similarity() -> None:
    states = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    assert redundancy(states).tolist() == [[0.5, 0.5, 0.0]]
    padded = redundancy(states, torch.tensor([[True, False, True]]))
    assert padded[0, [0, 2]].tolist() == [0.0, 0.0] and bool(padded[0, 1].isnan())
    assert redundancy(states[:, :1]).tolist() == [[0.0]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_last_prompt_token_s_attention_is_that_of_the_whole_map(attention: str, side: str) -> None:
    inputs = {**tiny.batch([tiny.prompt(1), tiny.prompt(2, seed=1)], side), "pixel_values": tiny.pictures(3)}
    maps = tiny.tiny_model(attention="eager")(**inputs, output_attentions=True).attentions
    model = tiny.tiny_model(attention=attention)
    with observe(model) as flow:
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(flow.images) == 6
    for layer, attended in enumerate(maps):
        expected = []
        for row, tokens in enumerate(inputs["input_ids"]):
            last = int(inputs["attention_mask"][row].nonzero().max())
            found = attended[row].mean(dim=0)[last, tokens == tiny.IMAGE_TOKEN]
            expected += list(found.split(tiny.PATCHES))
        for image, one in zip(flow.images, expected * 2, strict=True):
            assert image.language is not None and image.language.layers == (0, 1)
            torch.testing.assert_close(image.language.attention[layer], one, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_prompt_that_does_not_fit_its_pictures_is_told() -> None:
    model = tiny.tiny_model()
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    with observe(model) as flow, pytest.warns(UserWarning, match="72 visual tokens of images"):
        model.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
    assert flow.images[0].language is None
    with observe(model, language=False) as flow:
        model(**inputs)
        assert flow.images[0].language is None
        flow.clear()
        assert not flow.images


@torch.no_grad()
def test_a_failing_pass_and_a_failing_block_leave_nothing_behind() -> None:
    model = tiny.tiny_model()
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    model(**inputs)  # transformers lays hooks of its own at the first call
    before, registry = families.fingerprint(model), families.registered()
    with pytest.raises(ZeroDivisionError), observe(model) as flow:
        with pytest.raises(ValueError):
            model(**{**inputs, "input_ids": inputs["input_ids"][:, :-20], "attention_mask": None})
        flow.clear()
        model(**inputs)
        raise ZeroDivisionError
    assert families.fingerprint(model) == before and families.registered() == registry
    assert len(flow.images) == 1 and not flow.observing
    flow.close()


def test_what_cannot_be_observed_is_refused_with_what_to_do() -> None:
    model = tiny.tiny_model()
    with observe(model):
        with pytest.raises(FlowCutError, match="observed already"):
            observe(model)
        with pytest.raises(FlowCutError, match=r"being observed\. Leave the with block"):
            attach(model, FlowCut(target_num=4))
        with pytest.raises(FlowCutError, match="being observed"):
            detach(model)
        with pytest.raises(FlowCutError, match="DataParallel"):
            nn.parallel.replicate(model, [])  # type: ignore[no-untyped-call]
            model.model._replicate_for_data_parallel()
    with (
        attach(model, VisionZip(dominant=4, contextual=2)),
        pytest.raises(FlowCutError, match=r"visionzip.*detach\(model\) first"),
    ):
        observe(model)
    compiled = nn.Module()
    compiled._orig_mod = model
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        observe(compiled)
    with pytest.raises(UnsupportedModelError, match="not a supported"):
        observe(nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match="so its flow cannot be observed"):
        observe(tiny_classes.tiny_model("aria"))


@torch.no_grad()
def test_half_precision_is_recorded_in_float32() -> None:
    model = tiny.tiny_model().to(torch.bfloat16)
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1).to(torch.bfloat16)}
    expected = model(**inputs).logits
    with observe(model, to_global=True) as flow:
        assert torch.equal(model(**inputs).logits, expected)
    tile, language = flow.images[0].tiles[0], flow.images[0].language
    assert tile.to_global is not None and language is not None
    for numbers in (tile.relation, tile.score, tile.importance, tile.redundancy, tile.to_global, language.attention):
        assert numbers.dtype == torch.float32 and bool(numbers.isfinite().all())
