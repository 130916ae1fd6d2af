"""Asking about scenes: packing, sharing and remembering change no answer of plain generation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration

from flowcut import METHODS, Method
from flowcut.attaching import attach, detach
from flowcut.checkpoints.loading import LoadedModel
from flowcut.inputs.prompting import model_inputs
from flowcut.tasks import TaskQuestion, TaskScene
from flowcut.tasks import asking as under_test
from flowcut.tasks.asking import Asked, Memory, RowPlan, oracle_patches, pack_answers, packs

TEXTS = ("what is shown?", "word1 word2 word3 is shown?", "what?", "word4 is word5 shown what?", "word9?")
LAYERS = {"pyramiddrop": {"layers": (2, 4)}, "sparsevlm": {"layers": (1, 2, 4)}}


def a_model(side: int = tiny.GRID) -> LoadedModel:
    """A tiny model with enough decoder layers to cut, for pictures of ``side`` patches."""
    config = tiny.tiny_config()
    config.text_config.num_hidden_layers = 6
    config.vision_config.image_size = 14 * side
    torch.manual_seed(3)
    model = tiny.concentrate(LlavaForConditionalGeneration(config).eval())
    processor = tiny_checkpoint.tiny_processor()
    size = {"height": 14 * side, "width": 14 * side}
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 14 * side}, crop_size=size)
    return LoadedModel(model, processor, torch.device("cpu"), torch.float32)


def some_scenes() -> Asked:
    """Three scenes with three, one and two questions."""
    generator = np.random.default_rng(5)
    asked: Asked = []
    for number, texts in enumerate((TEXTS[:3], TEXTS[3:4], (TEXTS[4], TEXTS[0]))):
        file = io.BytesIO()
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((84, 84), Image.Resampling.BICUBIC).save(file, "PNG")
        touched = generator.random((2, 24, 24)) > 0.9
        items = (("noun", "dog", ""), ("noun", "cat", ""))
        questions = tuple(TaskQuestion("name", text, "dog", (place % 2,)) for place, text in enumerate(texts))
        scene = TaskScene(f"{number}.png", file.getvalue(), items, touched, questions)
        asked.append((number, scene, list(questions)))
    return asked


def generated(loaded: LoadedModel, plan: RowPlan, asked: Asked) -> list[str]:
    """What ``generate()`` says to every question alone."""
    detach(loaded.model)
    model: Any = loaded.model
    said = []
    for number, scene, questions in asked:
        for question in questions:
            method = plan.build(oracle_patches(plan, number, scene, question))
            if method is not None:
                attach(loaded.model, method)
            inputs = model_inputs(loaded.processor, scene.picture(), question.text)
            with torch.inference_mode():
                tokens = model.generate(**inputs, do_sample=False, max_new_tokens=under_test.MAX_NEW_TOKENS)
            text = loaded.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            said.append(text.strip())
            detach(loaded.model)
    return said


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Methods that cut at several depths do so within the tiny model."""
    make = under_test.make_method

    def shallow_method(name: str, target_num: int | None = None) -> Method:
        return METHODS[name](target_num=target_num, **LAYERS[name]) if name in LAYERS else make(name, target_num)

    monkeypatch.setattr(under_test, "make_method", shallow_method)
    yield


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", ["uncut", *METHODS])
def test_every_method_answers_as_generate_does(name: str, positions: Any) -> None:
    loaded, asked = a_model(), some_scenes()
    plan = RowPlan(name) if name == "uncut" else RowPlan(name, 9, positions)
    expected = generated(loaded, plan, asked)
    assert len(set(expected)) > 2
    with Memory(loaded) as memory:
        for batch_size in (1, 2, 16):
            said = [
                text
                for pack in packs(asked, batch_size)
                for text in pack_answers(loaded, plan, pack, batch_size, memory)
            ]
            assert said == expected, batch_size


def test_the_oracle_too() -> None:
    loaded, asked, plan = a_model(side=24), some_scenes(), RowPlan("oracle", 20, "original")
    expected = generated(loaded, plan, asked)
    with Memory(loaded) as memory:
        assert [text for pack in packs(asked, 4) for text in pack_answers(loaded, plan, pack, 4, memory)] == expected


def test_a_model_whose_pictures_cannot_be_joined_is_asked_scene_by_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = a_model(), some_scenes()
    monkeypatch.setattr(under_test, "may_join", lambda loaded: False)
    for plan in (RowPlan("uncut"), RowPlan("fastv", 9)):
        with Memory(loaded) as memory:
            assert pack_answers(loaded, plan, asked, 16, memory) == generated(loaded, plan, asked)


def test_packs_are_filled_with_whole_scenes() -> None:
    asked = some_scenes()
    sizes = [[len(questions) for _, _, questions in pack] for pack in packs(asked, 4)]
    assert sizes == [[3, 1], [2]]
    assert [len(pack) for pack in packs(asked, 1)] == [1, 1, 1]
    assert list(packs([], 4)) == []


def test_prompts_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, asked = a_model(), some_scenes()
    with Memory(loaded) as memory:
        first = pack_answers(loaded, RowPlan("uncut"), asked, 16, memory)

        def refuse(*arguments: Any) -> None:
            raise AssertionError("a prompt was written again")

        monkeypatch.setattr(under_test, "encode", refuse)
        assert pack_answers(loaded, RowPlan("uncut"), asked, 16, memory) == first
