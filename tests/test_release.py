"""What a release must agree on: versions, commands and templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import flowcut

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_stands_in_one_place_and_the_documents_name_it() -> None:
    project = read("pyproject.toml").split("[project]\n")[1].split("\n[")[0]
    assert 'dynamic = ["version"]' in project and "\nversion" not in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", flowcut.__version__)
    assert yaml.safe_load(read("CITATION.cff"))["version"] == flowcut.__version__
    releases = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", read("CHANGELOG.md"), re.MULTILINE)
    assert releases[0] == flowcut.__version__


def test_the_changelog_names_the_model_that_ships() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', read("packages/flowcut-mini/pyproject.toml"), re.MULTILINE)
    assert f"flowcut-mini {version}" in read("CHANGELOG.md")


def test_pre_commit_runs_what_the_checks_run() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    checks = read(".ci/run").split('step "lint and types"\n')[1].split("\n\n")[0]
    assert entries == checks.splitlines()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names) > 1
    for field in content["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]


def test_files_that_the_templates_name_are_there() -> None:
    texts = [*FORMS, ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md", ROOT / "SECURITY.md"]
    assert len(texts) == 5
    named = [name for text in texts for name in re.findall(r"[\w./-]+\.(?:md|py)\b", text.read_text(encoding="utf-8"))]
    assert len(named) > 4 and [name for name in named if not (ROOT / name).exists()] == []
