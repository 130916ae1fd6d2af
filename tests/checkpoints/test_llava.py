"""Checkpoints in LLaVA's own format, in all the shapes they come in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from flowcut import FlowCut, UnsupportedModelError, attach
from flowcut.checkpoints import load_llava
from flowcut.checkpoints.conversations import SYSTEM

CASE = "llava15_clip9"
TOWER = "model.vision_tower.vision_tower."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    golden.write_checkpoint(CASE, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return logits_of(golden.load_case(CASE, tmp_path_factory.mktemp("whole")))


@torch.no_grad()
def logits_of(case: golden.Case) -> torch.Tensor:
    return case.model(input_ids=case.input_ids(1), pixel_values=case.pixels(1)).logits


def reload(folder: Path, **options: Any) -> golden.Case:
    model, _ = load_llava(folder, **options)
    return golden.Case(CASE, {}, load_file(golden.FOLDER / CASE / "tensors.safetensors"), model)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_sharded_and_pickled_weights(folder: Path, expected: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, folder / f"model-{number + 1}-of-2.safetensors")
    assert torch.equal(logits_of(reload(folder)), expected)
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    torch.save({"unrelated": torch.zeros(1)}, folder / "training_args.bin")
    assert torch.equal(logits_of(reload(folder)), expected)


def test_tower_weights_from_their_own_checkpoint(folder: Path, expected: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    save_file({name: t for name, t in weights.items() if name not in inside}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="no vision-tower weights"):
        reload(folder, vision_tower=CLIPVisionModel.config_class.from_pretrained(folder / "tower"))
    tower = CLIPVisionModel(CLIPVisionModel.config_class.from_pretrained(folder / "tower"))
    short = {name.removeprefix(TOWER).removeprefix("vision_model."): t for name, t in inside.items()}
    tower.load_state_dict(short)
    tower.save_pretrained(folder / "elsewhere")
    assert torch.equal(logits_of(reload(folder, vision_tower=folder / "elsewhere")), expected)


def test_tower_described_in_the_config_itself(folder: Path, expected: torch.Tensor) -> None:
    tower = json.loads((folder / "tower" / "config.json").read_text())
    shutil.rmtree(folder / "tower")
    change_config(folder, mm_vision_tower="openai/clip-vit-large-patch14-336", vision_config=tower)
    assert torch.equal(logits_of(reload(folder)), expected)


def test_a_tower_config_that_does_not_name_its_kind_is_clips(folder: Path, expected: torch.Tensor) -> None:
    tower = json.loads((folder / "tower" / "config.json").read_text())
    del tower["model_type"]
    (folder / "tower" / "config.json").write_text(json.dumps(tower))
    change_config(folder, mm_vision_tower=str(folder / "tower"))
    assert torch.equal(logits_of(reload(folder)), expected)


def test_dtype(folder: Path) -> None:
    assert {p.dtype for p in reload(folder, dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in reload(folder).model.parameters()} == {torch.float32}


@torch.no_grad()
def test_a_converted_checkpoint_saves_and_loads_as_hugging_face(folder: Path, expected: torch.Tensor) -> None:
    case = reload(folder)
    case.model.save_pretrained(folder / "converted")
    again = LlavaForConditionalGeneration.from_pretrained(folder / "converted")
    output = again(input_ids=case.input_ids(1), pixel_values=case.pixels(1))
    assert torch.equal(output.logits, expected)
    assert again.config.image_token_id == case.model.config.image_token_id


def write_tokenizer(folder: Path) -> None:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "USER:": 3, "ASSISTANT:": 4, "what": 5, "is": 6, "this": 7}
    tokenizer = Tokenizer(models.WordLevel({**words, **{f"w{i}": i for i in range(8, 128)}}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.mark.parametrize("aspect", ["pad", None])
@torch.no_grad()
def test_the_processor_fits_the_model(folder: Path, aspect: str | None) -> None:
    write_tokenizer(folder)
    change_config(folder, image_aspect_ratio=aspect)
    model, processor = load_llava(folder)
    assert processor is not None
    rows = model.get_input_embeddings().weight
    assert (
        len(rows) == 130 and processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == 128
    )
    torch.testing.assert_close(rows[128], rows[:128].mean(0))
    torch.testing.assert_close(model.lm_head.weight[129], model.lm_head.weight[:128].mean(0))
    picture = Image.new("RGB", (200, 90), "white")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == f"{SYSTEM} USER: <image>\nwhat is this ASSISTANT:"
    answered = [*messages, {"role": "assistant", "content": "a cat"}, {"role": "user", "content": "sure?"}]
    spoken = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *answered])
    assert spoken == "Be brief. USER: <image>\nwhat is this ASSISTANT: a cat</s>USER: sure? "
    inputs = processor(images=picture, text=text, return_tensors="pt")
    assert (inputs["input_ids"] == 128).sum() == 64 and inputs["pixel_values"].shape == (1, 3, 112, 112)
    corner, middle = inputs["pixel_values"][0, :, 0, 0], inputs["pixel_values"][0, :, 56, 56]
    # "pad" makes the picture square with bars of the mean colour (0 after normalisation); else it is cropped.
    assert (corner.abs().max() < 0.02) == (aspect == "pad") and middle.min() > 1.5
    with attach(model, FlowCut(target_num=8)) as handle:
        answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert handle.trace.sequence is not None and handle.trace.sequence.visual_tokens == (8,)
    assert answer[:, inputs["input_ids"].shape[1] :].max() < 128


def test_what_cannot_be_read_says_so(folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"mm_patch_merge_type": "spatial"}, "LLaVA-NeXT"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'"),
    ):
        before = (folder / "config.json").read_text()
        change_config(folder, **changes)
        with pytest.raises(UnsupportedModelError, match=message):
            load_llava(folder)
        (folder / "config.json").write_text(before)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        load_llava(folder / "missing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_llava(golden.FOLDER)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(UnsupportedModelError, match="from_pretrained"):
        load_llava(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.2.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"linear_2\.bias"):
        load_llava(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_llava(folder)


@torch.no_grad()
def test_llava_next_with_its_processor(tmp_path: Path) -> None:
    golden.write_checkpoint("llava_next", tmp_path)
    write_tokenizer(tmp_path)
    model, processor = load_llava(tmp_path)
    assert processor is not None and type(model).__name__ == "LlavaNextForConditionalGeneration"
    picture = Image.new("RGB", (200, 150), "white")
    inputs = processor(images=picture, text="USER: <image> what is this ASSISTANT:", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 5, 3, 96, 96) and inputs["image_sizes"].tolist() == [[150, 200]]
    with attach(model, FlowCut(target_num=32)) as handle:
        answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert handle.trace.images[0].target == 32
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
