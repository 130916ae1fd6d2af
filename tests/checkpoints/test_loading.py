"""Finding and loading what a user names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, LlavaForConditionalGeneration

from flowcut import FlowCutError, UnsupportedModelError
from flowcut.checkpoints.loading import choose_device, choose_dtype, load_model
from flowcut.inputs.pictures import load_image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def save_in_llavas_format(folder: Path) -> LlavaForConditionalGeneration:
    """The tiny model as the original repositories would have written it."""
    model = tiny.tiny_model()
    names = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "lm_head.": "lm_head.",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        old, new = next((old, new) for old, new in names.items() if name.startswith(old))
        weights[new + name.removeprefix(old)] = tensor.contiguous()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    model.config.vision_config.save_pretrained(folder / "tower")
    config = model.config.text_config.to_dict()
    config.update(
        model_type="llava_llama",
        architectures=["LlavaLlamaForCausalLM"],
        mm_projector_type="mlp2x_gelu",
        mm_vision_tower="tower",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_hidden_size=32,
    )
    (folder / "config.json").write_text(json.dumps(config))
    return model


def test_hugging_face_format(checkpoint: Path) -> None:
    loaded = load_model(str(checkpoint), device="cpu")
    expected = tiny.tiny_model().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.dtype is torch.float32 and loaded.device.type == "cpu" and not loaded.model.training
    assert loaded.processor.tokenizer.convert_tokens_to_ids("<image>") == tiny.IMAGE_TOKEN


def test_dtype_is_obeyed(checkpoint: Path) -> None:
    loaded = load_model(str(checkpoint), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_llavas_own_format(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    model = save_in_llavas_format(folder)
    tiny_checkpoint.tiny_tokenizer().save_pretrained(folder)
    loaded = load_model(str(folder), device="cpu")
    image_token = loaded.processor.tokenizer.convert_tokens_to_ids("<image>")
    prompt = torch.tensor([tiny.prompt()])
    renamed = torch.where(prompt == tiny.IMAGE_TOKEN, image_token, prompt)
    pixels = tiny.pictures(1)
    with torch.no_grad():
        expected = model(input_ids=prompt, pixel_values=pixels).logits
        actual = loaded.model(input_ids=renamed, pixel_values=pixels).logits
    assert torch.allclose(actual[..., :127], expected[..., :127], atol=1e-5)


def test_llavas_own_format_without_tokenizer(tmp_path: Path) -> None:
    save_in_llavas_format(tmp_path / "original")
    with pytest.raises(FlowCutError, match="has no tokenizer"):
        load_model(str(tmp_path / "original"), device="cpu")


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No model found"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_missing_weights(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        load_model(str(tmp_path), device="cpu")


def test_processor_without_tokenizer(tmp_path: Path) -> None:
    tiny.tiny_model().save_pretrained(tmp_path)
    tiny_checkpoint.tiny_processor().image_processor.save_pretrained(tmp_path)
    with pytest.raises(FlowCutError, match=r"no tokenizer|no usable processor"):
        load_model(str(tmp_path), device="cpu")


def test_unknown_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*LlavaForConditionalGeneration"):
        load_model(str(tmp_path), device="cpu")


def test_device_and_dtype_names() -> None:
    assert choose_dtype(None, torch.device("cuda")) is torch.bfloat16
    assert choose_dtype(None, torch.device("cpu")) is torch.float32
    assert choose_dtype("float16", torch.device("cpu")) is torch.float16
    with pytest.raises(ValueError, match="float8"):
        choose_dtype("float8", torch.device("cpu"))
    with pytest.raises(ValueError, match="'toaster'"):
        choose_device("toaster")
    with pytest.raises(ValueError, match="'cuda:99'"):
        choose_device("cuda:99")


def test_images(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(turned, exif=exif)
    image = load_image(turned)
    assert image.size == (20, 40) and image.mode == "RGB"

    whole = tiny_checkpoint.save_picture(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut_off.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path)
    for name in ("cut_off.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)
