"""The built-in tasks in lmms-eval's form: a folder with pictures, questions and YAMLs for its ``--include_path``.

The harness then asks the questions of ``flowcut eval``, with the same prompts, and judges them by the same function.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..tasks.asking import MAX_NEW_TOKENS, Asked
from ..tasks.split import TaskSplit

FUNCTIONS = '''"""What the YAMLs beside this file call."""

from pathlib import Path

from PIL import Image

from flowcut.tasks.metrics import right


def picture(doc):
    """The question's picture."""
    with Image.open(Path(__file__).parent / "pictures" / doc["picture"]) as stored:
        return [stored.convert("RGB")]


def judge(doc, results):
    """Whether the answer is right, as `flowcut eval` judges it."""
    return {"accuracy": float(right(results[0], doc["answer"]))}
'''


def export_tasks(folder: Path, split: TaskSplit, asked: Asked) -> list[str]:
    """Write questions of a split for lmms-eval.

    Args:
        folder: where; made if needed. Files of an earlier export are replaced.
        split: the split they are of.
        asked: the questions, as :func:`~flowcut.tasks.evaluation.choose_questions` gives them.

    Returns:
        The names of the harness's tasks: first the group of all, then one for each task.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    place = 0
    for _, scene, some in asked:
        name = Path(scene.name).name
        (pictures / name).write_bytes(scene.encoded)
        for question in some:
            line = {"place": place, "picture": name, "question": question.text, "answer": question.answer}
            questions[question.task].append({**line, "kind": question.kind})
            place += 1
    group = f"flowcut_{split.name}".replace("-", "_")
    names = [f"{group}_{task}" for task in questions]
    for name, written in zip(names, questions.values(), strict=True):
        lines = "".join(json.dumps(line) + "\n" for line in written)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (folder / f"{name}.yaml").write_text(task_yaml(name), encoding="utf-8")
    (folder / f"{group}.yaml").write_text(group_yaml(group, names), encoding="utf-8")
    (folder / "utils.py").write_text(FUNCTIONS, encoding="utf-8")
    licences = (resources.files("flowcut.tasks") / "data" / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(licences, encoding="utf-8")
    return [group, *names]


def task_yaml(name: str) -> str:
    """One task; numbers as in ``flowcut eval``."""
    return f"""task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {MAX_NEW_TOKENS}
  temperature: 0
  num_beams: 1
  do_sample: false
process_results: !function utils.judge
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""


def group_yaml(group: str, names: list[str]) -> str:
    """All of them, every task weighing the same."""
    members = "".join(f"  - {name}\n" for name in names)
    return f"""group: {group}
task:
{members}aggregate_metric_list:
  - metric: accuracy
    aggregation: mean
    weight_by_size: false
metadata:
  version: 1.0
"""


def answers_in_order(folder: Path, answers: Mapping[str, Mapping[int, str]]) -> list[str]:
    """Answers to exported questions in the order of ``flowcut eval``'s.

    Args:
        folder: the export.
        answers: by the harness's task, the answer to each question by its number there (``doc_id``).
    """
    placed: dict[int, str] = {}
    for name, some in answers.items():
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        placed |= {json.loads(lines[number])["place"]: answer for number, answer in some.items()}
    return [placed[place] for place in sorted(placed)]
