"""What the documentation says about the code, held against the code."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import typer
import yaml

from flowcut import METHODS, Method
from flowcut.cli import app
from flowcut.models import FAMILIES
from flowcut.models.base import ImageLayout, ModelParts, VisionTower
from flowcut.models.classes import known_classes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "adding-a-family.md").read_text()
TEXTS = sorted({*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("recipes/**/*.md")})
each_text = pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its two head lines."""
    section = page.split(f"{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def named(cell: str) -> list[str]:
    """The names in backticks in a cell."""
    return re.findall(r"`\.?([\w.]+)`", cell)


@each_text
def test_links_lead_somewhere(text: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text.read_text())
    missing = [link for link in links if "://" not in link and not (text.parent / link).exists()]
    assert missing == []
    if text.is_relative_to(DOCS):
        local = [link for link in links if "://" not in link]
        outside = [link for link in local if not (text.parent / link).resolve().is_relative_to(DOCS)]
        assert outside == [], "the site has pages only; name other files as paths in backticks"


@each_text
def test_paths_that_a_page_names_are_there(text: Path) -> None:
    tops = "src|tests|docs|benchmarks|examples|packages|recipes"
    paths = re.findall(rf"`((?:{tops})/[^`\s]*)`", text.read_text())
    assert [path for path in paths if "<" not in path and not (ROOT / path).exists()] == []


def test_every_page_stands_in_the_sites_table_of_contents() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    in_contents = re.findall(r"[\w/-]+\.md", yaml.safe_dump(site["nav"]))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.glob("**/*.md")}
    assert sorted(in_contents) == sorted(page for page in pages if not page.startswith("measured/"))


@pytest.mark.parametrize(("start", "file"), [('"smolvlm_vision"', "towers.py"), ("name: ClassVar", "idefics3.py")])
def test_the_page_on_families_shows_code_as_it_is(start: str, file: str) -> None:
    (code,) = [block for block in blocks(PAGE, "python") if block.startswith(start)]
    # The formatter sets other empty lines on a page, where the code stands in no class.
    source = (ROOT / "src" / "flowcut" / "models" / file).read_text()
    assert without_empty_lines(indent(code, "    ")) in without_empty_lines(source)


def without_empty_lines(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.strip())


def test_the_page_names_what_there_is() -> None:
    attributes = {field.name for form in (ImageLayout, VisionTower, ModelParts) for field in fields(form)}
    for owner, name in re.findall(r"`(ImageLayout|VisionTower|ModelParts)\.(\w+)`", PAGE):
        assert name in attributes, f"{owner}.{name}"
    assert set(re.findall(r"`([a-z_]+)`[;,.]", PAGE.split("Besides these there are")[1].split("##")[0])) <= attributes


def test_the_pages_list_every_family_and_method() -> None:
    families_page = (DOCS / "families.md").read_text()
    own = table(families_page, "recorded numbers of the released code have files of their own:")
    assert {name for row in own for name in named(row[1])} == {family.class_name for family in FAMILIES}
    listed = {named(row[0])[0] for row in table(families_page, "## Supported")}
    assert listed == {row.class_name for row in known_classes() if row.supported}
    assert listed >= {family.class_name for family in FAMILIES}
    page = (DOCS / "methods.md").read_text()
    assert {name for row in table(page, "# The methods") for name in named(row[1])} == set(METHODS)
    assert {named(row[0])[0] for row in table(page, "## What each does")} == set(METHODS)
    reference = (DOCS / "reference" / "methods.md").read_text()
    documented = re.findall(r"^::: flowcut\.methods\.(\w+)$", reference, re.MULTILINE)
    assert set(documented) == {method.__name__ for method in METHODS.values()}
    common = {name for row in table(reference, "# The methods' settings") for name in named(row[0])}
    assert common == {field.name for field in fields(Method)}


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [code for language, code in fences if language in languages]


def commands(page: str) -> list[list[str]]:
    """Every ``flowcut`` command in a page's code, as words."""
    code = "\n".join([*blocks(page, "", "bash"), *re.findall(r"`(flowcut [^`]+)`", page)])
    joined = re.sub(r"\\?\n\s*(?=--)", " ", code)
    found = (re.search(r"(?:^|&& )flowcut (\S.*)$", line) for line in joined.splitlines())
    return [command.group(1).split() for command in found if command]


@each_text
def test_commands_and_options_exist(text: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *words in commands(text.read_text()):
        command = group if name.startswith("--") else group.commands.get(name)
        assert command is not None, f"flowcut {name}"
        options = {"--help", *(option for parameter in command.params for option in parameter.opts)}
        asked = {word.split("=")[0] for word in (name, *words) if word.startswith("--")}
        assert asked <= options, f"flowcut {name}: {asked - options}"


@each_text
def test_imports_and_settings_exist(text: Path) -> None:
    page = text.read_text()
    for module, names in re.findall(r"^from (flowcut[\w.]*) import ([\w, ]+)$", page, re.MULTILINE):
        home = import_module(module)
        assert [name for name in names.split(", ") if not hasattr(home, name)] == [], module
    for method in METHODS.values():
        asked = re.findall(rf"\b{method.__name__}\(([^()]*)\)", page)
        settings = {name for arguments in asked for name in re.findall(r"(\w+)=", arguments)}
        assert settings <= {field.name for field in fields(method)}, method.__name__


def test_a_pass_meets_the_functions_that_the_page_names() -> None:
    page = (ROOT / "docs" / "how-a-pass-works.md").read_text()
    named_on_page = set(re.findall(r"`([A-Za-z_]+\.[A-Za-z_]+)`", page)) - {"handle.trace"}
    assert len(named_on_page) > 40
    known: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "flowcut").rglob("*.py"):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        tree = ast.parse(path.read_text())
        definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        known.setdefault(name, set()).update(node.name for node in definitions)
        for node in definitions:
            if isinstance(node, ast.ClassDef):
                inner = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                known.setdefault(node.name, set()).update(inner)
    missing = [name for name in sorted(named_on_page) if name.split(".")[1] not in known.get(name.split(".")[0], set())]
    assert missing == []
    folders = set(re.findall(r"(?:stages|algorithm)/[a-z_/]*(?:\.py)?", page))
    assert folders and all((ROOT / "src" / "flowcut" / folder).exists() for folder in folders)
