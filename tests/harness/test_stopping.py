"""Errors end the run whoever catches exceptions, and padding is not computed."""

from __future__ import annotations

from typing import Any

import pytest
from requests_of_the_harness import Request

from flowcut.harness.stopping import PADDING, StoppedRun, stopping, without_padding


def test_an_error_passes_whoever_takes_exceptions_for_empty_answers() -> None:
    def broken(prompt: str) -> str:
        raise ValueError(f"no  answer to\n{prompt}")

    answer = ""
    with pytest.raises(StoppedRun) as caught:
        try:
            answer = stopping(broken, "answering")("this")
        except Exception:
            answer = "swallowed"
    assert answer == ""
    assert str(caught.value) == "flowcut: answering failed, so this run ends: ValueError: no answer to this"
    assert isinstance(caught.value, SystemExit) and isinstance(caught.value.__cause__, ValueError)


def test_padding_gets_the_answer_it_repeats_and_is_not_computed() -> None:
    asked: list[Any] = []

    def ask(requests: list[Any]) -> list[str]:
        asked.extend(requests)
        return [f"answer {request.doc_id}" for request in requests]

    real = [Request(0), Request(1), Request(1)]
    padding = Request(1, metadata={PADDING: True})
    assert without_padding(ask)([*real, padding]) == ["answer 0", "answer 1", "answer 1", "answer 1"]
    assert asked == real


def test_repeats_of_a_request_keep_answers_of_their_own() -> None:
    numbers = iter("abc")
    once = Request(1)
    assert without_padding(lambda requests: [next(numbers) for _ in requests])([once, once, Request(2)]) == [*"abc"]


def test_padding_that_repeats_nothing_is_answered_once() -> None:
    alone = Request(7, metadata={PADDING: True})
    assert without_padding(lambda requests: [len(requests)] * len(requests))([alone]) == [1]
    assert without_padding(lambda requests: ["never"])([]) == []
