"""Questions packed behind one picture are answered as if each were alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowcut.tasks import TaskQuestion as Question
from recipes.mini.dialogue import Packer, halved_positions
from recipes.mini.export import CHAT_TEMPLATE, tokenizer_with_image
from recipes.mini.student import Student

QUESTIONS = [
    Question("name", "What is at the top?", "dog", (0,)),
    Question("count", "How many dogs are there?", "2", (0, 1)),
    Question("exist", "Is there a cat?", "No", ()),
]


@pytest.fixture(scope="module")
def student(workspace) -> Student:
    torch.manual_seed(0)
    return Student(workspace).eval()


def test_no_question_sees_another(student: Student) -> None:
    projected = torch.randn(576, 576)
    positions = torch.arange(576)
    with torch.inference_mode():
        together, _ = student.logits(student.packer.pack(QUESTIONS, positions), projected)
        alone = [student.logits(student.packer.pack([q], positions), projected)[0] for q in QUESTIONS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0.02, atol=0.02)


def test_a_packed_question_is_the_chat_template_s_prompt(workspace, student: Student) -> None:
    tokenizer = tokenizer_with_image(workspace)
    packed = student.packer.pack(QUESTIONS[:1], torch.arange(1))
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0].text}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    place = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    assert packed.visual == slice(place, place + 1)
    ids[place] = 0
    assert packed.ids[: len(ids)].tolist() == ids
    answer = tokenizer(" dog<|im_end|>", add_special_tokens=False).input_ids
    assert packed.labels[packed.labels != -100].tolist() == answer
    assert int((packed.labels != -100).nonzero()[0]) == len(ids) - 1


def test_positions_leave_room_for_the_whole_picture(student: Student) -> None:
    packed = student.packer.pack(QUESTIONS, torch.tensor([3, 500]))
    start = packed.visual.start
    assert packed.positions[packed.visual].tolist() == [start + 3, start + 500]
    assert packed.positions[packed.visual.stop] == start + 501
    firsts = [packed.positions[packed.branch == number][0].item() for number in (1, 2, 3)]
    assert len(set(firsts)) == 1


def test_prompts_vary_in_length(workspace, student: Student) -> None:
    lengths = {
        len(student.packer.pack(QUESTIONS, torch.arange(4), np.random.default_rng(seed)).ids) for seed in range(30)
    }
    assert len(lengths) >= 5


def test_halved_positions_are_those_of_the_upper_left_patches() -> None:
    assert halved_positions(4).tolist() == [0, 2, 8, 10]
    assert halved_positions(24).shape == (144,)


def test_an_empty_picture_can_be_packed(student: Student) -> None:
    packed = student.packer.pack(QUESTIONS, torch.arange(0))
    assert packed.visual.start == packed.visual.stop
    assert isinstance(student.packer, Packer)
