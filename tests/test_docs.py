"""What the documentation says about the code, held against the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import families
import pytest
import transformers
import typer
import zoo

from flowcut import METHODS
from flowcut.cli import app
from flowcut.models import FAMILIES
from flowcut.models.base import ImageLayout, ModelFamily, ModelParts, VisionTower
from flowcut.models.idefics3 import SmolVLM
from flowcut.models.towers import LAYOUTS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-family.md").read_text()
TEXTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")})


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its two head lines."""
    section = page.split(f"{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def named(cell: str) -> list[str]:
    """The names in backticks in a cell."""
    return re.findall(r"`\.?([\w.]+)`", cell)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(text: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text.read_text())
    missing = [link for link in links if "://" not in link and not (text.parent / link).exists()]
    assert missing == []


def test_the_page_names_a_family_as_smolvlm_does() -> None:
    for field, value, _ in table(PAGE, "## 2. Name the family"):
        (name,) = named(field)
        if name == "is_base":
            assert SmolVLM.base_class is transformers.SmolVLMModel and "SmolVLMModel" in value
        elif name == "hub_ids":
            assert named(value.replace('"', "").replace("/", ".").replace("-", "_"))
            assert value.strip("`").split('"')[1] == SmolVLM.hub_ids[0]
        else:
            assert eval(value.strip("`"), {"LAYOUTS": LAYOUTS}) == getattr(SmolVLM, name)
    assert {named(row[0])[0] for row in table(PAGE, "## 2. Name the family")} == {
        *(name for name in vars(ModelFamily)["__annotations__"]),
        "is_base",
    }


def test_the_page_shows_smolvlms_tower_as_it_is() -> None:
    (line,) = re.findall(r'^"smolvlm_vision": .*$', PAGE, re.MULTILINE)
    assert line in (ROOT / "src" / "flowcut" / "models" / "towers.py").read_text()


def test_the_page_takes_smolvlm_apart_as_it_is() -> None:
    rows = {name: row[2] for row in table(PAGE, "## 4. Take the model apart") for name in named(row[0])}
    given = {"family", "top", "base"}
    assert set(rows) == {field.name for field in fields(ModelParts)} - given
    parts = SmolVLM().parts(*tiny_smolvlm())
    base: Any = parts.base
    names = {"base": base, "config": base.config}
    for name in ("projector", "language_model", "placeholders", "group", "shuffle", "second_cut", "grid_positions"):
        said = re.search(r"`([^`]+)`", rows[name] if name != "language_model" else rows[name].split(",")[0])
        assert said is not None
        value = getattr(parts, name)
        assert eval(said.group(1), names) == value, name
    assert parts.tower.module is base.vision_model and "find_tower(base.vision_model)" in rows["tower"]
    assert parts.packer is None and not parts.own_towers and parts.injection is None
    assert all(rows[name].startswith("none") for name in ("packer", "own_towers", "injection"))
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
    checks = [named(row[0])[0] for row in table(PAGE, "## 7. Tests")]
    assert set(checks) == {name for name in vars(families) if name.startswith("check_")}


def test_readme_lists_every_family_and_method() -> None:
    readme = (ROOT / "README.md").read_text()
    classes = {name for row in table(readme, "## Supported") for name in named(row[1])}
    assert classes == {family.class_name for family in FAMILIES}
    methods = {name for row in table(readme, "## Methods") for name in named(row[1])}
    assert methods == set(METHODS)


def commands(page: str) -> list[list[str]]:
    """Every ``flowcut`` command in a page's code, as words."""
    code = "\n".join(re.findall(r"```\n(.*?)```", page, re.DOTALL) + re.findall(r"`(flowcut [^`]+)`", page))
    joined = re.sub(r"\\?\n(?=--)", " ", code)
    return [line.split("flowcut ", 1)[1].split() for line in joined.splitlines() if re.search(r"(^|&& )flowcut ", line)]


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_commands_and_options_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *words in commands(page.read_text()):
        assert name in group.commands, name
        options = {option for parameter in group.commands[name].params for option in parameter.opts}
        asked = {word.split("=")[0] for word in words if word.startswith("--")}
        assert asked <= options, f"flowcut {name}: {asked - options}"
