"""What the documentation says about the code, held against the code."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import families
import pytest
import transformers
import typer
import yaml
import zoo

from flowcut import METHODS, Method
from flowcut.cli import app
from flowcut.models import FAMILIES
from flowcut.models.base import ImageLayout, ModelFamily, ModelParts, VisionTower
from flowcut.models.classes import known_classes
from flowcut.models.idefics3 import SmolVLM
from flowcut.models.towers import LAYOUTS

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


def test_the_page_names_a_family_as_smolvlm_does() -> None:
    for field, value, _ in table(PAGE, "## 2. A file of its own"):
        (name,) = named(field)
        if name == "is_base":
            assert SmolVLM.base_class is transformers.SmolVLMModel and "SmolVLMModel" in value
        elif name == "hub_ids":
            assert named(value.replace('"', "").replace("/", ".").replace("-", "_"))
            assert value.strip("`").split('"')[1] == SmolVLM.hub_ids[0]
        else:
            assert eval(value.strip("`"), {"LAYOUTS": LAYOUTS}) == getattr(SmolVLM, name)
    assert {named(row[0])[0] for row in table(PAGE, "## 2. A file of its own")} == {
        *(name for name in vars(ModelFamily)["__annotations__"]),
        "is_base",
    }


def test_the_page_shows_smolvlms_tower_as_it_is() -> None:
    (line,) = re.findall(r'^"smolvlm_vision": .*$', PAGE, re.MULTILINE)
    assert line in (ROOT / "src" / "flowcut" / "models" / "towers.py").read_text()


def test_the_page_takes_smolvlm_apart_as_it_is() -> None:
    rows = {name: row[2] for row in table(PAGE, "`parts(base, top)` returns a `ModelParts`:") for name in named(row[0])}
    given = {"family", "top", "base"}
    assert set(rows) == {field.name for field in fields(ModelParts)} - given
    parts = SmolVLM().parts(*tiny_smolvlm())
    base: Any = parts.base
    names = {"base": base, "config": base.config}
    for name in (
        "projector",
        "language_model",
        "placeholders",
        "group",
        "shuffle",
        "second_cut",
        "grid_positions",
        "first_position",
    ):
        said = re.search(r"`([^`]+)`", rows[name] if name != "language_model" else rows[name].split(",")[0])
        assert said is not None
        value = getattr(parts, name)
        assert eval(said.group(1), names) == value, name
    assert parts.tower.module is base.vision_model and "find_tower(base.vision_model)" in rows["tower"]
    assert parts.packer is None and not parts.own_towers and parts.injection is None
    assert not parts.refusals
    assert all(
        rows[name].startswith("none") for name in ("packer", "own_towers", "injection", "tokens_per_image", "refusals")
    )
    assert SmolVLM().feature_choice(parts, {}).layers == (len(parts.tower.layers),)


def tiny_smolvlm() -> tuple[Any, Any]:
    """Base module and model."""
    config = transformers.SmolVLMConfig(
        vision_config={**zoo.tiny.SHAPE, "intermediate_size": 64}, text_config=families.text_config(), scale_factor=2
    )
    model = transformers.SmolVLMForConditionalGeneration._from_config(config)
    return model.model, model


def test_the_page_names_what_there_is() -> None:
    attributes = {field.name for form in (ImageLayout, VisionTower, ModelParts) for field in fields(form)}
    for owner, name in re.findall(r"`(ImageLayout|VisionTower|ModelParts)\.(\w+)`", PAGE):
        assert name in attributes, f"{owner}.{name}"
    checks = [named(row[0])[0] for row in table(PAGE, "## 4. Tests")]
    assert set(checks) == {name for name in vars(families) if name.startswith("check_")}


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
