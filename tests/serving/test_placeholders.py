"""Placeholders and places of cut pictures, without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zoo

import flowcut
from flowcut import FlowCut, FlowCutError, UnsupportedModelError, make_method
from flowcut.checkpoints.memory import write_memory
from flowcut.methods import METHODS
from flowcut.serving.choice import VARIABLE, identity_of, method_for
from flowcut.serving.launch import command_of, server
from flowcut.serving.placeholders import coded, decoded, in_parts, moved, per_picture, shortened, uncut_places

from tiny_checkpoint import save_checkpoint  # isort: skip


def test_separators_stay_and_tiles_share() -> None:
    assert shortened([7, 1, 1, 1, 8], 1, 2) == [7, 1, 1, 8]
    assert shortened([7, 1, 1, 9, 1, 1, 8], 1, 2) == [7, 1, 9, 1, 8]
    for kept in (3, 6):
        with pytest.raises(FlowCutError, match="another budget"):
            shortened([7, 1, 1, 9, 1, 1, 8], 1, kept)


def test_positions_of_a_cut_prompt_are_those_of_the_uncut_one() -> None:
    whole, places = uncut_places([5, 1, 1, 6, 1, 7], 1, [2, 1], [4, 3])
    assert whole == [5, 1, 1, 1, 1, 6, 1, 1, 1, 7]
    assert places == [0, 1, 1, 5, 6, 9]
    visual = torch.tensor([False, True, True, False, True, False])
    # The second and the fourth token of the first picture stayed, the third of the second one.
    offsets = torch.tensor([[1], [3], [2]])
    positions = moved(torch.tensor([[*places, 77, 78]]), visual, offsets)
    assert positions.tolist() == [[0, 2, 4, 5, 8, 9, 77, 78]]
    assert uncut_places([5, 1, 1, 1, 6], 1, [2, 1], [3, 2])[1] == [0, 1, 1, 4, 6]
    with pytest.raises(FlowCutError, match="1 placeholders"):
        uncut_places([5, 1, 6], 1, [1, 1], [4, 4])


def test_tiles_of_a_picture_go_together() -> None:
    entries = [torch.full((2, 3), float(number)) for number in range(3)]
    assert [len(own) for own in per_picture(entries, [2, 1])] == [4, 2]
    assert len(per_picture(entries, [5, 5, 5])) == 3
    with pytest.raises(FlowCutError, match="3 images"):
        per_picture(entries, [1, 1])
    places = [torch.tensor([[0], [2]])] * 3
    assert torch.cat(in_parts(places, [4, 4, 4], [2, 1], [1, 1])).flatten().tolist() == [0, 2, 4, 6, 0, 2]
    assert torch.cat(in_parts(places, [4, 4, 4], [2, 1], [2, 1])).flatten().tolist() == [0, 2, 0, 2, 0, 2]


def test_places_survive_half_precision() -> None:
    places = torch.tensor([[0, 127, 128], [585, 4000, 32767]])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(decoded(coded(places).to(dtype)), places)


def test_where_the_method_comes_from(tmp_path, monkeypatch) -> None:
    expected = FlowCut(target_num=9, history=0.7)
    for named in ("flowcut(target_num=9,history=0.7)", {"method": "flowcut", "target_num": 9, "history": 0.7}):
        assert method_for(SimpleNamespace(flowcut=named), str(tmp_path)) == expected
    monkeypatch.setenv(VARIABLE, "flowcut(target_num=9,history=0.7)")
    assert method_for(SimpleNamespace(), str(tmp_path)) == expected
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(FlowCutError, match="--hf-overrides"):
        method_for(SimpleNamespace(), str(tmp_path))
    with pytest.raises(FlowCutError, match="cannot be used"):
        method_for(SimpleNamespace(flowcut="flowcat(target_num=9)"), str(tmp_path))
    write_memory(expected, tmp_path)
    assert method_for(SimpleNamespace(), str(tmp_path)) == expected


def test_engines_are_told_apart_by_all_that_their_method_does(tmp_path) -> None:
    assert len({identity_of(FlowCut(target_num=one)) for one in (9, 8)}) == 2
    shipped = Path(flowcut.__file__).parent / "methods" / "schedules"
    calibration = next(shipped.glob("*.json")).read_text()
    file = tmp_path / "schedule.json"
    file.write_text(calibration)
    method = FlowCut(target_num=64, schedule=str(file), decoder_layer=None)
    first = identity_of(method)
    assert identity_of(method) == first
    file.write_text(calibration + "\n")
    assert identity_of(method) != first


def test_the_command_of_an_engine(tmp_path) -> None:
    save_checkpoint(tmp_path)
    path = str(tmp_path)
    given = {"a": 1, "text_config": {"max_position_embeddings": 99}}
    method = make_method("flowcut_plus", 9)
    command = command_of(path, method, ["--port", "80", "--hf-overrides", json.dumps(given)])
    overrides = json.loads(command[-3])
    assert command[:-4] == server(path) and command[-4] == "--hf-overrides" and command[-2:] == ["--port", "80"]
    assert overrides["a"] == 1 and overrides["text_config"]["max_position_embeddings"] == 99
    assert "mrope_section" in json.dumps(overrides)
    assert overrides["flowcut"] == "flowcut_plus(target_num=9)"
    assert "mrope_section" not in command_of(path, make_method("flowcut", 9))[-1]
    with pytest.raises(FlowCutError, match="JSON object"):
        command_of(path, method, ["--hf-overrides=7"])
    for name in METHODS:
        if METHODS[name].reads_text:
            with pytest.raises(UnsupportedModelError, match="reads the question"):
                command_of(path, make_method(name, 9))


def test_a_second_cut_is_left_to_no_one(tmp_path) -> None:
    model = zoo.case("llava_next").model
    model.save_pretrained(tmp_path)
    command = command_of(str(tmp_path), make_method("flowcut(history=0.7)", 9))
    assert json.loads(command[-1])["flowcut"] == "flowcut(history=0.7,decoder_layer=none,target_num=9)"
