"""Number for number what the released code does, through the public names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import golden
import pytest
import torch
from renamed import image_features
from torch import Tensor

from flowcut import FlowCut, Handle, attach

RUNS = [
    (case, run)
    for case in golden.LLAVA_CASES
    for run in json.loads((golden.FOLDER / case / "meta.json").read_text())["runs"]
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, golden.Case]:
    return {name: golden.load_case(name, tmp_path_factory.mktemp(name)) for name in golden.LLAVA_CASES}


@pytest.fixture(params=RUNS, ids=["-".join(pair) for pair in RUNS])
def attached(
    request: pytest.FixtureRequest, cases: dict[str, golden.Case]
) -> Iterator[tuple[golden.Case, str, int, Handle]]:
    name, run = request.param
    case, facts = cases[name], cases[name].meta["runs"][run]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = attach(case.model, FlowCut.as_released(facts["target_num"]))
    with handle:
        yield case, run, facts["batch"], handle


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def test_released_run(attached: tuple[golden.Case, str, int, Handle]) -> None:
    case, run, batch, handle = attached
    expected = {
        name.removeprefix(f"{run}."): tensor for name, tensor in case.tensors.items() if name.startswith(f"{run}.")
    }
    features: list[Tensor] = []
    hook = case.model.model.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: features.append(args[0])
    )
    output = case.model(input_ids=case.input_ids(batch), pixel_values=case.pixels(batch))
    hook.remove()
    images = handle.trace.images
    kept = torch.stack([image.kept for image in images])
    recorded = expected["vit.keep_final"].long()
    if recorded.shape[1] > kept.shape[1]:
        # Where nothing was cut the reference lists CLS and all patches, 0 ... N.
        assert recorded.tolist() == [list(range(65))] * batch
        recorded = recorded[:, :-1]
    assert kept.tolist() == recorded.tolist()
    assert [image.tokens_after_layer for image in images] == [expected["vit.n_tokens_after_layer"].tolist()] * batch
    for layer, alive in images[0].kept_after_layer.items():
        assert alive.tolist() == expected[f"vit.L{layer:02d}.keep"][0].tolist()
    assert relative_error(features[0], expected["features"]) < 1e-4
    assert relative_error(image_features(output).reshape(expected["projected"].shape), expected["projected"]) < 1e-4
    assert relative_error(output.logits, expected["logits"]) < 1e-4


@torch.no_grad()
def test_released_greedy_tokens(attached: tuple[golden.Case, str, int, Handle]) -> None:
    case, run, batch, _ = attached
    if batch > 1:
        assert f"{run}.generated" not in case.tensors
        return
    inputs = {"input_ids": case.input_ids(1), "pixel_values": case.pixels(1)}
    output = case.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert output[:, -8:].tolist() == case.tensors[f"{run}.generated"].tolist()


@pytest.mark.parametrize("name", golden.LLAVA_CASES)
@torch.no_grad()
def test_stock_model(cases: dict[str, golden.Case], name: str) -> None:
    case = cases[name]
    features: list[Tensor] = []
    hook = case.model.model.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: features.append(args[0])
    )
    for batch in (1, 3):
        output = case.model(input_ids=case.input_ids(batch), pixel_values=case.pixels(batch))
        assert relative_error(output.logits, case.tensors[f"stock.logits_b{batch}"]) < 1e-4
    hook.remove()
    assert relative_error(features[-1], case.tensors["stock.features_b3"]) < 1e-4
    projected = image_features(output).reshape(case.tensors["stock.projected_b3"].shape)
    assert relative_error(projected, case.tensors["stock.projected_b3"]) < 1e-4
    inputs = {"input_ids": case.input_ids(1), "pixel_values": case.pixels(1)}
    generated = case.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert generated[:, -8:].tolist() == case.tensors["stock.generated_b1"].tolist()


def test_golden_files_are_whole() -> None:
    assert {path.parent.name for path in Path(golden.FOLDER).glob("*/meta.json")} == {
        *golden.LLAVA_CASES,
        "llava_next",
        "qwen2vl_d8",
    }
    assert len(RUNS) == 15
