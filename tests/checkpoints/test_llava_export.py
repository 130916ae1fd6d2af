"""Checkpoints written in LLaVA's format: there and back, the same weights bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_llava import write_tokenizer
from typer.testing import CliRunner

from flowcut import FlowCut, UnsupportedModelError
from flowcut.checkpoints import load_llava
from flowcut.checkpoints.llava_export import export_llava
from flowcut.checkpoints.memory import read_memory, write_memory
from flowcut.cli import app

CASES = ["llava15_clip9", "llava15_clip12_clspatch", "llava_next"]


@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_there_and_back_the_weights_are_the_same_bit_for_bit(case: str, tokenizer: bool, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    golden.write_checkpoint(case, original)
    if tokenizer:
        write_tokenizer(original)
    model, processor = load_llava(original)
    export_llava(model, processor, tmp_path / "written", vision_tower="somewhere/clip")
    expected, found = load_file(original / "model.safetensors"), load_file(tmp_path / "written" / "model.safetensors")
    expected = {name: value for name, value in expected.items() if not name.endswith(("position_ids", "inv_freq"))}
    assert set(found) == set(expected)
    for name, weight in found.items():
        assert weight.dtype == expected[name].dtype and torch.equal(weight, expected[name]), name
    before = json.loads((original / "config.json").read_text())
    told = json.loads((tmp_path / "written" / "config.json").read_text())
    same = [key for key in before if key.startswith(("mm_", "num_", "hidden_", "image_")) or "size" in key]
    assert len(same) > 8
    for key in same:
        if key != "mm_vision_tower" and (tokenizer or key != "image_aspect_ratio"):  # the processor's business
            assert told.get(key) == before[key], key
    again, other = load_llava(tmp_path / "written")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert again.config.to_dict() == model.config.to_dict() or told["mm_vision_tower"] == "somewhere/clip"
    if tokenizer:
        assert processor is not None and other is not None
        words = "what is <image> this"
        assert other.tokenizer(words)["input_ids"] == processor.tokenizer(words)["input_ids"]
        files = [path.read_text() for path in (tmp_path / "written").glob("*token*.json")]
        assert files and not any("<image>" in text or "<pad>" in text for text in files)


def test_what_llavas_format_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="Llama or Mistral behind a CLIP tower; this is llama behind dinov2"
    ):
        export_llava(tiny.tiny_model("dinov2"), None, tmp_path)
    with pytest.raises(UnsupportedModelError, match="LlavaModel has no form"):
        export_llava(tiny.tiny_model().model, None, tmp_path)
    with pytest.raises(ValueError, match="--vision-tower"):
        export_llava(tiny.tiny_model(), None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_the_memory_along(tmp_path: Path) -> None:
    golden.write_checkpoint(CASES[0], tmp_path)
    write_tokenizer(tmp_path)
    write_memory(FlowCut(target_num=9), tmp_path)
    (tmp_path / "sentences.model").write_bytes(b"words")

    def call(source: Path, target: str, *options: str) -> Any:
        done = CliRunner().invoke(app, ["export", str(source), str(tmp_path / target), *options])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    call(tmp_path, "hf")
    assert "put it into the folder" in call(tmp_path / "hf", "a", "--format", "llava", "--vision-tower", "x/y")
    given = ["--vision-tower", "x/y", "--tokenizer", str(tmp_path / "sentences.model")]
    assert "put it into the folder" not in call(tmp_path / "hf", "b", "--format", "llava", *given)
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"words"
    for folder in ("hf", "a", "b"):
        memory = read_memory(tmp_path / folder)
        assert memory is not None and memory.method == FlowCut(target_num=9)
    expected = load_file(tmp_path / "model.safetensors")
    for name, weight in load_file(tmp_path / "b" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name
    again = CliRunner().invoke(app, ["export", str(tmp_path / "hf"), str(tmp_path / "a")])
    assert again.exit_code == 2 and "is not empty" in again.output
