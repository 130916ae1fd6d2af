"""The commands of ``docs/ablations.md``, on a tiny model: every row of the paper's tables is a method of its own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import tiny_checkpoint
from typer.testing import CliRunner

from flowcut import METHODS, FlowCut, Method
from flowcut.cli import app
from flowcut.methods.naming import read_expressions
from flowcut.tasks import evaluation

PAGE = (Path(__file__).parents[1] / "docs" / "ablations.md").read_text()
COMMANDS = {
    words[words.index("--output") + 1].rpartition("/")[2]: words
    for words in map(shlex.split, re.findall(r"```\n(.*?)```", PAGE, re.DOTALL))
}


def methods_of(table: str) -> list[Method]:
    """The methods that a command measures, at the paper's 128 tokens."""
    words = COMMANDS[table]
    budget = int(words[words.index("--target-num") + 1])
    return [one.build(budget) for one in read_expressions(words[words.index("--methods") + 1], METHODS)]


def test_table_7_has_every_combination_of_the_paper() -> None:
    single = [FlowCut(target_num=128, cut_every=None, history=c, criteria=m) for c, m in combinations()]
    several = [
        FlowCut(target_num=128, adaptive=a, history=c, criteria=m) for a in (True, False) for c, m in combinations()
    ]
    found = methods_of("table-7")
    assert set(found[:4]) == set(single) and set(found[4:]) == set(several) and len(found) == 12


def combinations() -> list[tuple[float, str]]:
    """With and without cumulative importance and multiple criteria."""
    return [(c, m) for c in (0.5, 0.0) for m in ("all", "relation")]


def test_tables_10_and_11_have_the_papers_values() -> None:
    assert methods_of("table-10") == [FlowCut(target_num=128, history=tenths / 10) for tenths in range(10)]
    every = (1, 2, 3, 4, 6, 8, 12, None)
    assert methods_of("table-11") == [FlowCut(target_num=128, cut_every=layers) for layers in every]


@pytest.mark.parametrize("table", ["table-7", "table-10", "table-11"])
def test_the_command_measures_a_row_for_each(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    monkeypatch.setattr(evaluation, "COST_REPEATS", 1)
    words = COMMANDS[table][1:]
    words[words.index("--output") + 1] = str(tmp_path / "out")
    words[words.index("--target-num") + 1] = "9"
    done = CliRunner().invoke(app, [*words, "--model", str(checkpoint), "--limit", "3", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.stderr
    uncut, *rows = json.loads(done.stdout)["rows"]
    assert uncut["method"] == "uncut" and all(row["visual_tokens"] == 9 for row in rows)
    assert [row["method"] for row in rows] == [
        str(one) for one in read_expressions(words[words.index("--methods") + 1], METHODS)
    ]
