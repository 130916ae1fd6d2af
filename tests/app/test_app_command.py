"""The command ``flowcut app`` in front of the page."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowcut.app import hosting
from flowcut.app.hosting import open_port, scratch_folder
from flowcut.cli import app


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else real(name, *more)
    )
    outcome = CliRunner().invoke(app, ["app"])
    assert outcome.exit_code == 2
    assert outcome.stderr == "Error: The page needs Gradio: pip install 'flowcut[app]'.\n"


def test_a_port_that_is_taken_is_said() -> None:
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"Nothing can listen at 127.0.0.1, port {port}: .*Give another --port"):
            open_port("127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_uploads_lie_in_memory_where_they_can_and_go_with_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "MEMORY", tmp_path)
    with scratch_folder() as folder:
        assert Path(folder).parent == tmp_path and (os.stat(folder).st_mode & 0o077) == 0
    assert not Path(folder).exists()
    monkeypatch.setattr(hosting, "MEMORY", tmp_path / "gone")
    with scratch_folder() as folder:
        assert Path(folder).is_dir()
