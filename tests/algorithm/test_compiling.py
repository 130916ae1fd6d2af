"""Choices are compiled when somebody asks for it, for a few shapes, and what goes wrong is said."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcut import FlowCutError, compile_choices
from flowcut.algorithm import compiling
from flowcut.measure.kernels import KernelCounter


def doubled(values: Tensor, times: int = 2) -> Tensor:
    """What is compiled here."""
    return values * times


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "_compiled", {})
    monkeypatch.setattr(compiling, "_full", set())
    with compile_choices(False):
        yield


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was compiled, by a compiler that does nothing."""
    names: list[str] = []

    def compile_nothing(function: Callable[..., Any], **settings: bool) -> Callable[..., Any]:
        assert settings == {"fullgraph": True, "dynamic": False}
        names.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return names


def test_nothing_is_compiled_unless_asked_for(compilations: list[str]) -> None:
    values = torch.ones(3)
    assert compiling.run(doubled, values, 2).tolist() == [2, 2, 2] and compilations == []
    with compile_choices():
        with compile_choices(False):
            assert not compiling.wanted()
        assert compiling.wanted()
        assert compiling.run(doubled, values, 2).tolist() == [2, 2, 2]
    assert not compiling.wanted() and compilations == ["doubled"]
    compile_choices()
    assert compiling.wanted()
    compile_choices(False)
    assert not compiling.wanted()


@pytest.mark.parametrize(("value", "told"), [("1", "True"), ("0", "False"), (None, "False")])
def test_the_environment_can_ask_for_it(value: str | None, told: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != compiling.VARIABLE}
    environment |= {} if value is None else {compiling.VARIABLE: value}
    code = "from flowcut.algorithm import compiling; print(compiling.wanted())"
    outcome = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == told


def test_it_holds_in_every_thread(compilations: list[str]) -> None:
    seen: list[bool] = []
    with compile_choices():
        threads = [
            threading.Thread(target=lambda: seen.append(compiling.run(doubled, torch.ones(3), 2).tolist() == [2.0] * 3))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [True] * 4 and compilations == ["doubled"]


def test_a_shape_is_compiled_once_and_few_shapes_are(compilations: list[str]) -> None:
    values = torch.ones(4, 3)
    with compile_choices():
        for _ in range(2):
            for given in (values, values.mT, values[:, :2], values.double()):
                compiling.run(doubled, given, 2)
            compiling.run(doubled, values, 3)
        assert len(compilations) == 5
        for tokens in range(4, compiling.SHAPES - 1):
            compiling.run(doubled, torch.ones(tokens), 2)
        assert len(compilations) == compiling.SHAPES
        with pytest.warns(UserWarning, match=r"compiled for 8 shapes already \(doubled.* others are made uncompiled"):
            assert compiling.run(doubled, torch.ones(2), 2).tolist() == [2, 2]
        compiling.run(doubled, values, 2)
    assert len(compilations) == compiling.SHAPES


def test_counters_see_the_form_that_is_not_compiled(compilations: list[str]) -> None:
    with compile_choices(), KernelCounter() as counter:
        compiling.run(doubled, torch.ones(3), 2)
    assert compilations == [] and counter.kernels_by_name["mul"] == 1


def test_what_is_compiled_already_is_not_compiled_again() -> None:
    asked: list[bool] = []
    whole = torch.compile(lambda values: values * (3 if compiling.wanted() else 2), backend="eager", fullgraph=True)
    with compile_choices():
        asked.append(compiling.wanted())
        assert whole(torch.ones(2)).tolist() == [2, 2]
    assert asked == [True]


def failing(error: Exception) -> Callable[..., Any]:
    def compile_badly(function: Callable[..., Any], **settings: bool) -> Callable[..., Any]:
        def raising(*inputs: Any) -> None:
            raise error

        return raising

    return compile_badly


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing(RuntimeError("No working C++ compiler found\nand more")))
    expected = r"doubled could not be compiled \(RuntimeError: No working C\+\+ compiler found\).*g\+\+.*Triton"
    with compile_choices(), pytest.raises(FlowCutError, match=expected):
        compiling.run(doubled, torch.ones(3), 2)


def test_memory_that_runs_out_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing(torch.OutOfMemoryError("full")))
    with compile_choices(), pytest.raises(torch.OutOfMemoryError, match="full"):
        compiling.run(doubled, torch.ones(3), 2)


def test_where_torch_cannot_compile_it_cannot_be_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported() -> None:
        raise RuntimeError("Python 4 not yet supported")

    monkeypatch.setattr(torch._dynamo.eval_frame, "check_if_dynamo_supported", unsupported)
    with pytest.raises(FlowCutError, match=r"torch.compile does not work .*Python 4 not yet supported.*leave"):
        compile_choices()
    assert not compiling.wanted()


def test_no_gradient_is_followed(compilations: list[str]) -> None:
    values = torch.ones(3, requires_grad=True)
    with compile_choices():
        assert not compiling.run(doubled, values, 2).requires_grad
