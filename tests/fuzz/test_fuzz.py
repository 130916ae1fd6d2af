"""A short run of the fuzzer; ``python -m tests.fuzz`` is the long one."""

from __future__ import annotations

import pytest
from fuzz_machine import COUNTS, Machine
from fuzz_run import run_chunk

from flowcut.stages.sequence.step import Steps

CASES = 16


@pytest.mark.parametrize("seed", range(4))
def test_nothing_a_program_does_to_an_attached_model_changes_its_answers(seed: int) -> None:
    before = COUNTS["begin"]
    run_chunk(seed, CASES)
    assert COUNTS["begin"] - before >= CASES


def test_the_fuzzer_finds_a_position_that_is_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = Steps._positions
    monkeypatch.setattr(Steps, "_positions", lambda *arguments: positions(*arguments) + 1)
    with pytest.raises(AssertionError, match="logits of"):
        run_chunk(0, 40)
    assert Machine.last is not None and any("generate" in done or "talk" in done for done in Machine.last.done)
