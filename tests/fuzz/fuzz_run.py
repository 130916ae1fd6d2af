"""How the fuzzer is run: in chunks of cases, each from a seed of its own."""

from __future__ import annotations

import hypothesis
from fuzz_machine import Machine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import run_state_machine_as_test

CHUNK = 50


class Independent(HypothesisProvider):
    """Draws every case by itself: hypothesis' own engine tries five near copies of each, and a case is dear here."""


AVAILABLE_PROVIDERS["flowcut-independent"] = Independent


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
        backend="flowcut-independent",
    )
    run_state_machine_as_test(machine, settings=chosen)
