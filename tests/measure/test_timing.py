"""The clock around a generate() call."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from flowcut.measure.timing import PhaseTimer, Seconds
from flowcut.models import find_parts


def slow_down(module: nn.Module, seconds: float) -> Any:
    """Make every pass through ``module`` take longer."""
    return module.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def test_delays_are_found_in_their_phase() -> None:
    model = tiny.tiny_model()
    _, parts = find_parts(model)
    slow_down(parts.tower.module, 0.10)
    slow_down(parts.projector, 0.15)
    slow_down(parts.language_model, 0.05)
    inputs = tiny.batch([tiny.prompt()])
    with PhaseTimer(parts, torch.device("cpu")) as timer:
        model.generate(**inputs, pixel_values=tiny.pictures(1), do_sample=False, min_new_tokens=4, max_new_tokens=4)
    seconds = timer.seconds
    assert 0.10 <= seconds.tower < 0.25
    assert 0.05 <= seconds.prefill < 0.15
    assert 0.15 <= seconds.decoding < 0.30
    assert seconds.rest >= 0.15
    assert seconds.total == pytest.approx(seconds.tower + seconds.prefill + seconds.decoding + seconds.rest, abs=1e-9)


def test_no_hook_is_left_after_an_error() -> None:
    _, parts = find_parts(tiny.tiny_model())
    with pytest.raises(KeyError), PhaseTimer(parts, torch.device("cpu")):
        raise KeyError
    for module in (parts.tower.module, parts.language_model):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_median_is_taken_phase_by_phase() -> None:
    runs = [Seconds(1, 9, 5, 5, 20), Seconds(2, 8, 6, 14, 30), Seconds(30, 7, 4, 19, 60)]
    assert Seconds.median(runs) == Seconds(2, 8, 5, 14, 30)
