"""How the command line is put together: found by itself, quick to start, with version and completion."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flowcut.cli
from flowcut import METHODS
from flowcut.cli import app, build_app
from flowcut.methods.settings import settings_of

FOLDER = Path(flowcut.cli.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
COMMANDS = (
    "answer",
    "app",
    "bench",
    "calibrate",
    "compare",
    "demo",
    "eval",
    "export",
    "export-tasks",
    "flow",
    "inspect",
    "methods",
    "models",
    "run",
    "score",
    "serve",
    "train",
)
HEAVY = {"torch", "torchvision", "transformers", "matplotlib", "numpy", "PIL", "safetensors"}


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def imports_at_the_top(path: Path) -> Iterator[tuple[int, str]]:
    """Level and name of everything that importing a file imports; what only type checkers read is left out."""
    waiting: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    for node in waiting:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, node.module or alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            waiting += node.body + node.orelse
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            waiting += node.body


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_heavy_imports_stay_inside_the_commands(path: Path) -> None:
    imported = set(imports_at_the_top(path))
    assert not {name.split(".")[0] for level, name in imported if level == 0} & {*HEAVY, "flowcut"}
    outside = {name for level, name in imported if level > 1}
    assert outside <= {"__version__"}, "a module of flowcut outside cli/ is imported at the top"


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = "import sys; from flowcut.cli import app; app(standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    loaded = {name.split(".")[0] for name in done.stdout.rsplit("\n", 2)[-2].split()}
    assert "flowcut" in loaded and not loaded & HEAVY


def test_every_command_has_a_file_and_one_new_file_is_a_new_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {command.name for command in app.registered_commands}
    files = {path.stem.replace("_", "-") for path in FILES}
    assert found == set(COMMANDS)
    assert files - found == {"--init--", "--main--", "options", "tables", "harness-rows", "server-load"}
    (tmp_path / "say_hello.py").write_text(
        'def say_hello_command(name: str) -> None:\n    """Greet."""\n    print(f"Hello {name}")\n'
    )
    monkeypatch.setattr(flowcut.cli, "__path__", [*flowcut.cli.__path__, str(tmp_path)])
    done = CliRunner().invoke(build_app(), ["say-hello", "you"])
    monkeypatch.delitem(sys.modules, "flowcut.cli.say_hello")
    assert done.exit_code == 0 and done.stdout == "Hello you\n"


def test_the_version_is_the_packages() -> None:
    done = call("--version")
    assert done.exit_code == 0 and done.stdout == f"flowcut {flowcut.__version__}\n"


def test_the_shell_can_complete() -> None:
    done = call("--show-completion", "bash")
    assert done.exit_code == 0 and "complete" in done.stdout and "FLOWCUT_COMPLETE" in done.stdout.upper()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_explained(name: str) -> None:
    told = json.loads(call("methods", name, "--json").stdout)["method"]
    assert (told["name"], told["stage"], told["paper"]) == (name, METHODS[name].stage, METHODS[name].paper)
    settings = settings_of(METHODS[name])
    assert {one["name"] for one in told["settings"]} == set(settings)
    for one in told["settings"]:
        setting = settings[one["name"]]
        assert (one["values"], one["meaning"]) == (setting.allowed, setting.meaning)
        assert one["default"] == (list(setting.default) if isinstance(setting.default, tuple) else setting.default)
    shown = re.sub(r"[│\s]+", " ", call("methods", name).stdout)
    assert METHODS[name].stage in shown and f"Paper: {METHODS[name].paper or 'none'}" in shown
    assert all(setting in shown.replace(" ", "") for setting in settings)


def test_a_method_that_is_not_there_is_named_with_those_that_are() -> None:
    done = call("methods", "scissors")
    assert done.exit_code == 2 and "Unknown method 'scissors'; known: flowcut" in done.stderr
