"""What the harness asks, as prompts; and how likely continuations are, against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image

from flowcut import FlowCut, attach
from flowcut.checkpoints.loading import LoadedModel
from flowcut.harness.likelihood import continuation_losses
from flowcut.harness.prompts import (
    Prompt,
    generation_arguments,
    prompt_of_messages,
    prompt_of_text,
    until,
    written_prompt,
)
from flowcut.inputs.prompting import build_prompt

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("L", (30, 40), 90)
TEMPLATE = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT :{% endfor %}"
)


def test_a_question_is_written_as_flowcut_eval_writes_it() -> None:
    for template in (None, TEMPLATE):
        processor = tiny_checkpoint.tiny_processor(template)
        for prompt in (
            prompt_of_text("what is shown?", [RED], {}),
            prompt_of_messages(
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "url": RED}, {"type": "text", "text": "what is shown?"}],
                    }
                ],
                {},
            ),
        ):
            assert written_prompt(processor, prompt.messages) == build_prompt(processor, "what is shown?")


def test_pictures_stand_where_the_text_marks_them_else_in_front() -> None:
    marked = prompt_of_text("left <image> right <image> which?", [RED, BLUE], {})
    kinds = [part["type"] for part in marked.messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"] and [one.mode for one in marked.images] == ["RGB", "RGB"]
    plain = prompt_of_text("which?", [RED, BLUE], {})
    assert [part["type"] for part in plain.messages[0]["content"]] == ["image", "image", "text"]


def test_what_is_no_picture_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"takes pictures, and the task gives str \('clip.mp4'\)"):
        prompt_of_text("which?", ["clip.mp4"], {})
    with pytest.raises(ValueError, match="the task holds video"):
        prompt_of_messages([{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}], {})
    turns = [{"role": "system", "content": []}, {"role": "user", "content": []}]
    with pytest.raises(ValueError, match="has no chat template"):
        written_prompt(tiny_checkpoint.tiny_processor(), turns)


def test_generation_is_greedy_unless_the_task_has_a_temperature() -> None:
    greedy = generation_arguments({"temperature": 0, "top_p": 1.0, "max_new_tokens": 8, "do_sample": False}, 99)
    assert greedy == {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    drawn = generation_arguments({"temperature": 0.5, "top_p": 0.9, "num_beams": 2}, 99)
    assert drawn == {"max_new_tokens": 99, "num_beams": 2, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    with pytest.warns(UserWarning, match="leaves out what the task says about image_aspect_ratio"):
        generation_arguments({"image_aspect_ratio": "pad"}, 99)


def test_an_answer_ends_where_the_task_says() -> None:
    assert until(" Yes.\n\nNext", {"until": ["\n\n", "###"]}) == "Yes.\n\nNext", "an end of white space ends nothing"
    assert until(" Yes. ASSISTANT: No", {"until": "ASSISTANT:"}) == "Yes." and until(" a ", {}) == "a"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(tiny.tiny_model(), tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


CONTINUATIONS = (" word1", " word2 word3 word4", " word5 word6")


def prompts() -> list[Prompt]:
    texts = ("what is shown?", "what?", "is what shown?")
    return [prompt_of_text(text, [picture], {}) for text, picture in zip(texts, (RED, BLUE, RED), strict=True)]


def by_hand(loaded: LoadedModel, prompt: Prompt, continuation: str) -> tuple[float, bool]:
    """One token after the other, each in a pass of its own over everything before it."""
    processor, model = loaded.processor, loaded.model
    inputs: Any = processor(text=written_prompt(processor, prompt.messages), images=prompt.images, return_tensors="pt")
    ids = inputs["input_ids"]
    loss, greedy = 0.0, True
    tokens = processor.tokenizer(continuation, add_special_tokens=False)["input_ids"]
    for token in tokens:
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        loss -= float(logits.log_softmax(dim=-1)[token])
        greedy = greedy and int(logits.argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return loss / len(tokens), greedy


@pytest.mark.parametrize("budget", [None, 9])
def test_likelihoods_are_those_of_a_computation_by_hand_cut_and_uncut(loaded: LoadedModel, budget: int | None) -> None:
    handle = None if budget is None else attach(loaded.model, FlowCut(target_num=budget))
    try:
        together = continuation_losses(loaded, prompts(), CONTINUATIONS)
        for prompt, continuation, found in zip(prompts(), CONTINUATIONS, together, strict=True):
            wanted = by_hand(loaded, prompt, continuation)
            (alone,) = continuation_losses(loaded, [prompt], [continuation])
            assert found[0] == pytest.approx(wanted[0], abs=1e-4) and alone[0] == pytest.approx(wanted[0], abs=1e-4)
            assert found[1] == alone[1] == wanted[1]
    finally:
        if handle is not None:
            handle.detach()


def test_the_likeliest_continuation_is_told_as_greedy(loaded: LoadedModel) -> None:
    (prompt, *_) = prompts()
    vocabulary = loaded.processor.tokenizer.get_vocab()
    words = [name for name in vocabulary if name.startswith("word")]
    found = continuation_losses(loaded, [prompt] * len(words), words)
    best = min(range(len(words)), key=lambda place: found[place][0])
    inputs: Any = loaded.processor(
        text=written_prompt(loaded.processor, prompt.messages), images=[RED], return_tensors="pt"
    )
    with torch.no_grad():
        first = int(loaded.model(**inputs).logits[0, -1].argmax())
    assert [greedy for _, greedy in found] == [vocabulary[word] == first for word in words]
    assert vocabulary[words[best]] == first or first not in {vocabulary[word] for word in words}


def test_text_alone_and_no_continuation(loaded: LoadedModel) -> None:
    mixed = continuation_losses(loaded, [prompts()[0], prompt_of_text("what?", [], {})], [" word1", " word1"])
    assert mixed[0] == continuation_losses(loaded, prompts()[:1], [" word1"])[0] != mixed[1]
    with pytest.raises(ValueError, match="'' has no tokens"):
        continuation_losses(loaded, prompts()[:1], [""])
