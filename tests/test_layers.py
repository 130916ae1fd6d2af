"""The layout: imports run one way, files stay short, and a method is one file and one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "flowcut"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"errors"},
    {"algorithm"},
    {"methods", "models"},
    {"trace"},
    {"stages"},
    {"attaching", "observing"},
    {"encoding"},
    {"inputs"},
    {"checkpoints"},
    {"measure", "serving"},
    {"tasks"},
    {"llava_files"},
    {"view"},
    {"app", "harness", "training"},
    {"cli"},
)
"""The files and folders of the package from low to high; those that share a layer know nothing of each other.

A new folder needs a place here: the highest layer it imports from must lie below it.
"""

VERSION = ("flowcut", "__version__")
"""What every layer may read."""

LINES = 320
"""The longest a file may be."""


def module_of(file: Path) -> tuple[str, ...]:
    """The dotted name of a file, in parts, ``__init__`` included."""
    return ("flowcut", *file.relative_to(PACKAGE).with_suffix("").parts)


def imported(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and full name of everything of the package that ``source`` imports, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [tuple(name.name.split(".")) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = module[: len(module) - node.level] if node.level else ()
            home += tuple(node.module.split(".")) if node.module else ()
            targets = [(*home, name.name) for name in node.names]
        else:
            continue
        ours = (target for target in targets if target[0] == "flowcut" and target != VERSION)
        yield from ((node.lineno, target) for target in ours)


def wrong_imports(source: str, module: tuple[str, ...]) -> list[str]:
    """The imports of ``source`` that do not lead from a higher layer to a lower one, or stay in their own part."""
    rank = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    here = module[1]
    return [
        f"line {line} imports {'.'.join(target)}"
        for line, target in imported(source, module)
        if target[1] not in (here, "__version__") and rank.get(target[1], len(LAYERS)) >= rank[here]
    ]


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {module_of(file)[1] for file in FILES} - {"__init__"}
    assert parts == set().union(*LAYERS)
    assert len(FILES) > 90


def test_no_import_runs_from_a_lower_layer_to_a_higher_one() -> None:
    below = [file for file in FILES if file != PACKAGE / "__init__.py"]  # the public face gathers from all
    found = {module_of(file): wrong_imports(file.read_text(encoding="utf-8"), module_of(file)) for file in below}
    assert {".".join(module): wrong for module, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from ..errors import FlowCutError\nfrom .base import Method\nimport torch", 0),
        ("from ..models import find_parts", 1),
        ("from ..trace.images import ImageTrace", 1),
        ("from .. import attaching", 1),
        ("from flowcut import attach", 1),
        ("from .. import __version__", 0),
        ("import flowcut.cli.app as app", 1),
        ("def work():\n    from ..stages import tower", 1),
        ("if TYPE_CHECKING:\n    from ..stages.sequence.gate import SequenceStage", 1),
        ("from ..algorithm.flow import flow\nfrom flowcut.view import overlay", 1),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, wrong: int) -> None:
    assert len(wrong_imports(source, ("flowcut", "methods", "flowcut"))) == wrong


def test_files_can_be_read_in_one_go() -> None:
    lines = {".".join(module_of(file)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {module: count for module, count in lines.items() if count > LINES} == {}
