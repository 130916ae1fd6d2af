"""What a config alone tells about a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_classes
import torch
import transformers
from transformers import BertConfig, MllamaConfig

from flowcut import UnsupportedModelError, attach, make_method
from flowcut.checkpoints.inspecting import Inspection, inspect_checkpoint, inspect_config

STAGES = {"tower": "flowcut", "projector": "divprune", "decoder": "fastv"}


def inspected(model_type: str) -> Inspection:
    if model_type not in tiny_classes.CLASSES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    return inspect_config({**tiny_classes.tiny_config(model_type).to_dict(), "model_type": model_type})


@pytest.mark.parametrize(
    ("model_type", "tokens"),
    [
        ("llava", "36 for each picture of 84 pixels"),
        ("gemma3", "9 for each picture of 84 pixels"),
        ("glm4v", "one for 28 x 28 pixels (336 x 336: 144, 672 x 672: 576, 1344 x 1344: 2304)"),
        ("lfm3_vl", "told by the first picture"),
        ("mistral3", "one for 28 x 28 pixels (336 x 336: 144, 672 x 672: 576, 1344 x 1344: 2304)"),
    ],
)
def test_tokens_of_a_picture(model_type: str, tokens: str) -> None:
    assert inspected(model_type).tokens == tokens


@pytest.mark.parametrize("model_type", ["gemma3", "glm4v", "lfm2_vl", "paligemma"])
def test_a_method_attaches_where_a_cut_is_possible_and_is_refused_with_the_reason_elsewhere(model_type: str) -> None:
    cuts = inspected(model_type).cuts
    assert list(cuts) == list(STAGES)
    with torch.device("meta"):
        model: Any = getattr(transformers, tiny_classes.CLASSES[model_type])(tiny_classes.tiny_config(model_type))
    for stage, name in STAGES.items():
        if cuts[stage] == "yes":
            attach(model, make_method(name, target_num=2)).detach()
            continue
        with pytest.raises(UnsupportedModelError) as refused:
            attach(model, make_method(name, target_num=2))
        assert cuts[stage] in str(refused.value)


def test_parts_in_words() -> None:
    found = inspected("qwen2_vl")
    assert (found.class_name, found.family) == ("Qwen2VLForConditionalGeneration", "qwen2_vl")
    assert "4 layers" in found.tower and "any size" in found.tower and found.projector == "PatchMerger"
    assert found.decoder == "Qwen2VLTextModel, 4 layers"
    assert found.placeholders == {"image": tiny_classes.IMAGE, "video": tiny_classes.VIDEO}
    assert found.positions == "(time, height, width) in the picture"


def test_a_folder_with_a_config_and_nothing_else(tmp_path: Path) -> None:
    tiny_classes.tiny_config("llava").save_pretrained(tmp_path)
    assert inspect_checkpoint(str(tmp_path)).cuts == dict.fromkeys(STAGES, "yes")


def test_what_is_refused_and_what_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="cross-attention"):
        inspect_config(MllamaConfig().to_dict())
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'bert' is no image-text-to-text model"):
        inspect_checkpoint(str(tmp_path))
