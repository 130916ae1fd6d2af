"""Every published table says what the stored rows say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fill_tables
import measured
import pytest
from fill_tables import ROOT, START, TABLES, filled, holds, pages, texts

from flowcut.tasks.metrics import score
from flowcut.tasks.paired import questions_of
from flowcut.tasks.rows import RowFile

FOLDERS = sorted(path.parent for path in measured.FOLDER.glob("*/rows.jsonl.gz"))

NOT_OF_ROWS = {
    "| | prompt tokens | requests per second |": "load of flowcut bench --server",
    "| trained | faster | FLOPs | arrives |": "seconds of benchmarks/training.py",
    "| benchmark | question file | picture |": "lengths that LLaVA's scripts ask for",
    "| tokens | `flowcut` | `flowcut_plus` |": "counted FLOPs",
    "| tokens | at most |": "patches of benchmarks/pages.py",
    "| | kernels, one prompt |": "counted operations",
    "| exit status | what happened |": "exit statuses",
    "| benchmark | question file |": "settings of LLaVA's scripts",
    "| time at | part |": "seconds of benchmarks/methods.py",
    "| the early cut,": "trials on the validation split",
    "| the choice,": "trials on the validation split",
    "| with the question,": "trials on the validation split",
    "| `target_num` | tokens into a layer (mean of 577) |": "seconds of a script of release 2.0.0",
    "| family, widths of | decoder layers |": "seconds of a script of release 2.0.0",
    "| method | seconds | of uncut | overhead |": "seconds of a script of release 2.0.0",
    "| | kernels of a prefill |": "counted operations",
    "| compiled | dispatched |": "counted operations",
    "| method | eager | compiled |": "seconds of benchmarks/compiled_choices.py",
    "| tower | eager | compiled |": "seconds of benchmarks/compiled_tower.py",
    "| tower of |": "seconds of benchmarks/towers.py",
    "| method | budget | tower | prefill |": "seconds of flowcut bench",
    "| | on things | nothing is left of the shape asked about |": "which patches were kept",
    "| | one (298 nouns) | two (31) |": "votes of the tower's patches in training",
    "| | one | two | three | four | five | six | all (151) |": "votes of the tower's patches in training",
    "| command | does | needs, on two cores": "what the recipe's commands take",
}
"""Tables of figures that are not made of an evaluation's rows, by the start of their first line, and what they hold."""

FIGURE = re.compile(r"[-+]?\d+(\.\d+)?%?( \(.*\))?( \d+%)?")


@pytest.fixture(scope="module")
def made() -> dict[Path, str]:
    return texts()


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pages_tables_are_what_the_rows_say(page: Path, made: dict[Path, str]) -> None:
    assert page.read_text(encoding="utf-8") == made[page], "run: python tools/fill_tables.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.json"])
def test_the_stored_tables_are_what_the_rows_say(folder: Path, name: str, made: dict[Path, str]) -> None:
    assert holds(folder / name, made[folder / name]), "run: python tools/fill_tables.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_stored_accuracies_are_those_of_the_stored_answers(folder: Path) -> None:
    for stored in RowFile(folder).read():
        questions = questions_of(stored.identity)
        for task, known in stored.row.scores.items():
            pairs = [
                (answer, question.answer)
                for answer, question in zip(stored.row.answers, questions, strict=True)
                if question.task == task
            ]
            assert score(task, [said for said, _ in pairs], [truth for _, truth in pairs]) == known


def test_every_folder_has_its_rows_in_one_file() -> None:
    loose = {str(path.parent.relative_to(ROOT)) for path in measured.FOLDER.glob("*/*/*")}
    assert loose == set(), "run: python tools/gather_rows.py FOLDER"
    assert {path.name for path in measured.FOLDER.iterdir()} == {folder.name for folder in FOLDERS}


def test_every_table_is_on_a_page() -> None:
    used = {name for page in pages() for name in START.findall(page.read_text(encoding="utf-8"))}
    assert used == set(TABLES)


def test_no_table_of_figures_is_typed_by_hand() -> None:
    named = []
    for page in fill_tables.markdown_pages():
        outside = re.sub(r"<!-- table: .*?<!-- end -->|```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for found in re.findall(r"^ *\|.*\n *\|[ :|-]+\|\n(?: *\|.*\n)*", outside, re.MULTILINE):
            head, _, *body = found.splitlines()
            figures = [cell for line in body for cell in line.split("|") if FIGURE.fullmatch(cell.strip())]
            starts = [start for start in NOT_OF_ROWS if head.strip().startswith(start)]
            named += starts
            assert len(figures) < 3 or starts, f"{page}: make it with tools/fill_tables.py, or name it above\n{head}"
    assert set(named) == set(NOT_OF_ROWS)


def test_a_figure_that_was_changed_by_hand_is_put_right() -> None:
    page = ROOT / "docs" / "accuracy.md"
    text = page.read_text(encoding="utf-8")
    assert "| 67.4 (64 to 70) 75% |" in text
    assert filled(text.replace("| 67.4 (64 to 70) 75% |", "| 77.4 (64 to 70) 75% |")) == text
    assert filled(text.replace("Positions matter", "Places matter")) != text


def test_the_check_names_the_file_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table: budgets/oracle -->\n<!-- end -->\nBehind\n")
    monkeypatch.setattr(fill_tables, "ROOT", tmp_path)
    monkeypatch.setattr(fill_tables, "FOLDER", tmp_path / "none")
    monkeypatch.setattr(sys, "argv", ["fill_tables.py", "--check"])
    with pytest.raises(SystemExit, match="1"):
        fill_tables.main()
    assert capsys.readouterr().out == "differs: page.md\n"
    monkeypatch.setattr(sys, "argv", ["fill_tables.py"])
    fill_tables.main()
    written = page.read_text()
    assert written == f"Before\n<!-- table: budgets/oracle -->\n\n{TABLES['budgets/oracle']()}\n<!-- end -->\nBehind\n"
    monkeypatch.setattr(sys, "argv", ["fill_tables.py", "--check"])
    fill_tables.main()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: budgets/nothing -->\n<!-- end -->\n", "no table 'budgets/nothing'; known: budgets/accuracy"),
        ("<!-- table: budgets/oracle -->\n| 1 |\n", "'budgets/oracle' has no <!-- end -->"),
    ],
)
def test_a_marker_that_leads_nowhere_is_refused(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(page)


def test_a_row_that_was_not_measured_is_named() -> None:
    with pytest.raises(LookupError, match="budgets has no row of flowcut, 65, None"):
        measured.row_of("budgets", "flowcut", 65)
