"""What is asked of a class without a file of its own; where it is not there, attaching says what is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_classes
import torch
import transformers

from flowcut import DivPrune, FlowCut, UnsupportedModelError, attach
from flowcut.models import find_parts
from flowcut.models.general import placeholder_of


def skeleton(model_type: str) -> Any:
    """A tiny model without weights."""
    if model_type not in tiny_classes.CLASSES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    with torch.device("meta"):
        return getattr(transformers, tiny_classes.CLASSES[model_type])(tiny_classes.tiny_config(model_type))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("llama4", "Llama4ForConditionalGeneration has its head inside the module that joins images and text"),
        ("hunyuan_vl", "counts positions along 4 axes, of which only 3 are known"),
    ],
)
def test_a_model_of_another_form_is_refused(model_type: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        find_parts(skeleton(model_type))


def test_a_model_must_name_its_placeholder() -> None:
    model: Any = torch.nn.Module()
    model.config = SimpleNamespace(image_token_id=None)
    with pytest.raises(UnsupportedModelError, match=r"no placeholder .* \(looked for image_token_id and image_token_"):
        placeholder_of(model)


def test_a_decoder_must_have_layers() -> None:
    model = skeleton("mistral3")
    model.model.language_model.layers = torch.nn.Sequential()
    with pytest.raises(UnsupportedModelError, match=r"has a decoder \(MistralModel\) without a list of layers"):
        find_parts(model)


@pytest.mark.parametrize(
    ("features", "shown"), [(torch.zeros(9, 32), r"a tensor of shape \[9, 32\]"), ((torch.zeros(2, 9, 32),), "tuple")]
)
@torch.no_grad()
def test_features_must_come_image_by_image(features: Any, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classes.tiny_model("aria")
    inputs = tiny_classes.together(model, [tiny_classes.sample(model, "aria", 1, 0)])
    output = tiny_classes.encoded(model, inputs)
    output.pooler_output = features
    monkeypatch.setattr(type(model.model), "get_image_features", lambda self, *args, **kwargs: output)
    refusal = pytest.raises(UnsupportedModelError, match=f"gave {shown} as pooler_output")
    with attach(model, DivPrune(target_num=3)), refusal:
        model(**inputs)
    monkeypatch.undo()
    with attach(model, DivPrune(target_num=3)) as handle:
        model(**inputs)
        assert handle.trace.sequence is not None and handle.trace.sequence.visual_tokens == (3,)


@torch.no_grad()
def test_minicpm_without_the_join_in_its_tower_is_not_cut_there() -> None:
    if not tiny_classes.installed("minicpmv4_6"):
        pytest.skip(f"transformers {transformers.__version__} has no minicpmv4_6 that is supported")
    model = tiny_classes.tiny_model("minicpmv4_6")
    inputs = tiny_classes.together(model, [tiny_classes.sample(model, "minicpmv4_6", 1, 0)])
    with attach(model, FlowCut(target_num=3)), pytest.raises(UnsupportedModelError, match="downsample_mode='4x'"):
        model(**inputs, downsample_mode="4x")
