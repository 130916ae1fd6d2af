"""How the fuzzer is run: in chunks of cases, each from a seed of its own."""

from __future__ import annotations

import hypothesis
from fuzz_machine import Machine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

CHUNK = 100


def run_chunk(seed: int, cases: int) -> None:
    """Run ``cases`` cases; always the same ones for a seed.

    Raises:
        AssertionError: the first difference; ``Machine.last`` knows what led to it.
    """
    machine = hypothesis.seed(seed)(Machine)
    chosen = settings(
        max_examples=cases,
        stateful_step_count=3 + seed % 4,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=chosen)
