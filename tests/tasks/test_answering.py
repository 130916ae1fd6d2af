"""Answers to all questions about a picture: sharing its cache and batching change nothing."""

from __future__ import annotations

import contextlib

import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image

from flowcut import METHODS, FlowCut, Method, attach
from flowcut.checkpoints.loading import LoadedModel
from flowcut.tasks.answering import answer_all, may_share, shared_length
from flowcut.tasks.decoding import cut_at_end

QUESTIONS = ["what is shown?", "word1 word2 word3 is shown?", "what?", "word4 is word5 shown what?", "word9?"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = tiny.tiny_model()
    return LoadedModel(model, tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    with Image.open(tiny_checkpoint.save_picture(tmp_path_factory.mktemp("pictures") / "picture.png")) as opened:
        return opened.convert("RGB")


@pytest.mark.parametrize(
    "method", [None, FlowCut(target_num=9), FlowCut(target_num=9, positions="original"), FlowCut(target_num=36)]
)
def test_a_shared_cache_and_any_batch_size_give_what_single_questions_give(
    loaded: LoadedModel, picture: Image.Image, method: Method | None
) -> None:
    with contextlib.nullcontext() if method is None else attach(loaded.model, method):
        single = [
            answer_all(loaded, picture, [text], batch_size=1, max_new_tokens=6, share_prefix=False)[0]
            for text in QUESTIONS
        ]
        assert len(set(single)) > 1 and all(single)
        for batch_size, share in ((1, True), (2, True), (16, True), (2, False), (16, False)):
            answers = answer_all(
                loaded, picture, QUESTIONS, batch_size=batch_size, max_new_tokens=6, share_prefix=share
            )
            assert answers == single, (batch_size, share)


def test_only_what_does_not_depend_on_the_question_is_shared(loaded: LoadedModel) -> None:
    assert may_share(loaded, None)
    for name, method in METHODS.items():
        one = method(target_num=9)
        assert may_share(loaded, one) == (not one.reads_text and not one.decoder_layers(False)), name
    assert not may_share(loaded, METHODS["fastv"](target_num=9)) and may_share(loaded, FlowCut(target_num=9))


def test_the_shared_part_ends_with_the_picture() -> None:
    prompts = [torch.tensor([1, 9, 9, 5, 6]), torch.tensor([1, 9, 9, 5]), torch.tensor([1, 9, 9, 7])]
    assert shared_length(prompts, [9]) == 3
    assert shared_length([*prompts, torch.tensor([2, 9, 9, 7])], [9]) == 0
    assert shared_length([*prompts, torch.tensor([1, 1, 9, 9, 7])], [9]) == 0
    assert shared_length([torch.tensor([1, 9, 9])], [9]) == 0


def test_an_answer_ends_with_its_end_token() -> None:
    assert cut_at_end(torch.tensor([4, 2, 5]), [2]).tolist() == [4]
    assert cut_at_end(torch.tensor([4, 5]), [2]).tolist() == [4, 5]


def test_no_question_is_refused(loaded: LoadedModel, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        answer_all(loaded, picture, [], batch_size=1, max_new_tokens=1, share_prefix=True)
