"""The built-in tasks in the harness's form: the same questions, pictures and judgement."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import ImageChops
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.harness.exporting import answers_in_order, export_tasks
from flowcut.tasks import load_split
from flowcut.tasks.evaluation import choose_questions


def functions(folder: Path) -> Any:
    """The file that the YAMLs call."""
    spec = importlib.util.spec_from_file_location("exported", folder / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_question_is_there_with_its_picture_and_judged_alike(tmp_path: Path) -> None:
    split = load_split("photo-v2")
    asked = choose_questions(split, ["exist", "count"])
    group, *names = export_tasks(tmp_path, split, asked)
    assert (group, names) == ("flowcut_photo_v2", ["flowcut_photo_v2_exist", "flowcut_photo_v2_count"])
    code = functions(tmp_path)
    flat = [(scene, question) for _, scene, questions in asked for question in questions]
    answers: dict[str, dict[int, str]] = {}
    seen = 0
    for name in names:
        config = yaml.safe_load((tmp_path / f"{name}.yaml").read_text().replace("!function ", ""))
        assert config["task"] == name and config["generation_kwargs"]["max_new_tokens"] == 8
        lines = (tmp_path / config["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        for number, line in enumerate(lines):
            doc = json.loads(line)
            scene, question = flat[doc["place"]]
            assert name.endswith(question.task)
            assert (doc[config["doc_to_text"]], doc[config["doc_to_target"]]) == (question.text, question.answer)
            answers.setdefault(name, {})[number] = f"answer {doc['place']}"
            seen += 1
        (picture,) = code.picture(doc)
        assert ImageChops.difference(picture, scene.picture()).getbbox() is None
        assert code.judge(doc, [f"The {question.answer.lower()}."]) == {"accuracy": 1.0}
        assert code.judge(doc, ["something else"]) == {"accuracy": 0.0}
    assert seen == len(flat)
    assert answers_in_order(tmp_path, answers) == [f"answer {place}" for place in range(len(flat))]
    assert yaml.safe_load((tmp_path / f"{group}.yaml").read_text())["task"] == names
    assert "licence" in (tmp_path / "README.md").read_text().lower()


def test_the_command_writes_the_questions_that_eval_would_ask(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export-tasks", str(tmp_path), "--split", "photo-v2", "--limit", "5", "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["questions"] == 5 == sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl"))
    refused = CliRunner().invoke(app, ["export-tasks", str(tmp_path), "--tasks", "smell"])
    assert refused.exit_code == 2 and "Unknown tasks: smell" in refused.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["export-tasks", str(tmp_path / "file"), "--split", "photo-v2", "--limit", "1"])
    assert done.exit_code == 2 and "Not a directory" in done.stderr


@pytest.mark.parametrize("split", ["test-v1", "new-v1", "photo-v2"])
def test_pictures_of_a_split_have_names_of_their_own(split: str) -> None:
    names = [Path(scene.name).name for scene in load_split(split).scenes]
    assert len(set(names)) == len(names)
