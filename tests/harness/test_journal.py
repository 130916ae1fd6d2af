"""Answers that are written are not computed again, whoever was killed and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from requests_of_the_harness import Request

from flowcut.harness.journal import CHUNK, Journal, progress

IDENTITY = {"method": "FlowCut(target_num=64)", "version": "2.0.0"}


class Killed(BaseException):
    """What a signal does."""


class Model:
    """Answers, and is killed at its call number ``last``."""

    def __init__(self, last: int = 99) -> None:
        self.calls: list[list[int]] = []
        self.last = last

    def ask(self, requests: list[Any]) -> list[str]:
        if len(self.calls) == self.last:
            raise Killed
        self.calls.append([request.doc_id for request in requests])
        return [f"answer {request.doc_id}" for request in requests]


def test_a_killed_run_goes_on_behind_its_last_written_part(tmp_path: Path) -> None:
    requests = [Request(number) for number in range(3 * CHUNK)]
    first, second = Model(last=2), Model()
    with pytest.raises(Killed):
        Journal(tmp_path, IDENTITY, 0).answering(first.ask, 1)(requests)
    assert progress(tmp_path) == (2 * CHUNK, 3 * CHUNK)
    (path,) = tmp_path.glob("*-0.jsonl")
    path.write_bytes(path.read_bytes() + b'{"key": "half of a li')
    answers = Journal(tmp_path, IDENTITY, 0).answering(second.ask, 1)(requests)
    assert answers == [f"answer {number}" for number in range(3 * CHUNK)]
    assert second.calls == [list(range(2 * CHUNK, 3 * CHUNK))]
    third = Model()
    assert Journal(tmp_path, IDENTITY, 5).answering(third.ask, 1)(requests) == answers and third.calls == []


def test_processes_read_each_others_answers(tmp_path: Path) -> None:
    for rank in (0, 1):
        Journal(tmp_path, IDENTITY, rank).answering(Model().ask, 2)([Request(rank), Request(rank + 2)])
    alone = Model()
    Journal(tmp_path, IDENTITY, 0).answering(alone.ask, 2)([Request(number) for number in range(5)])
    assert alone.calls == [[4]]


def test_another_method_another_prompt_and_another_length_are_other_answers(tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY, 0).answering(Model().ask, 1)([Request(0)])
    other = Model()
    Journal(tmp_path, {**IDENTITY, "version": "2.0.1"}, 0).answering(other.ask, 1)([Request(0)])
    asks = Journal(tmp_path, IDENTITY, 0).answering(other.ask, 1)
    asks([Request(0, args=("what else?", {"max_new_tokens": 3}, None, 0, "task", "test"))])
    asks([Request(0, args=("what?", {"max_new_tokens": 4}, None, 0, "task", "test"))])
    assert other.calls == [[0], [0], [0]]


def test_answers_that_are_drawn_are_drawn_again(tmp_path: Path) -> None:
    drawn = Request(0, args=("what?", {"temperature": 0.7}, None, 0, "task", "test"))
    for _ in range(2):
        model = Model()
        Journal(tmp_path, IDENTITY, 0).answering(model.ask, 1)([drawn])
        assert model.calls == [[0]]
