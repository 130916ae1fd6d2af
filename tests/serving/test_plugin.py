"""What the plug-in says of the engine it is in, without one."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest

from flowcut.serving import ARCHITECTURE, TESTED, register


@pytest.mark.parametrize("running", ["0.99.1", f"{TESTED[0]}.0"])
def test_a_release_that_was_not_tried_is_named(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, str] = {}
    registry = SimpleNamespace(register_model=known.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry, __version__=running))
    monkeypatch.setattr("flowcut.serving.version", lambda _: running)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        register()
    assert known == {ARCHITECTURE: f"flowcut.serving.vllm_model:{ARCHITECTURE}"}
    if running.startswith(TESTED):
        assert not told
    else:
        (warning,) = told
        assert running in str(warning.message) and TESTED[0] in str(warning.message)
