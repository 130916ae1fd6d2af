"""Loose rows of older output folders become one file, and nothing is lost on the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from gather_rows import gather, loose_name

from flowcut.tasks.rows import RowFile

MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "photo"


def make_loose(folder: Path) -> dict[str, dict[str, Any]]:
    """The folder as older versions would have left it; its rows by their file's name."""
    (folder / "rows").mkdir()
    shutil.copy(MEASURED / "table.json", folder)
    loose = {
        loose_name(one.identity, asdict(one.row.plan)): json.loads(json.dumps(one.row.as_dict()))
        for one in RowFile(MEASURED).read()
    }
    for name, row in loose.items():
        (folder / "rows" / name).write_text(json.dumps(row, indent=1) + "\n")
    return loose


def test_every_loose_row_is_in_the_file_as_it_was(tmp_path: Path) -> None:
    loose = make_loose(tmp_path)
    assert set(loose) == {
        "flowcut-64-default-2058a510f2.json",
        "flowcut_plus-64-default-9770eb9af1.json",
        "random-64-default-9f8297c569.json",
        "uncut-all-default-82701607f1.json",
    }
    assert gather(tmp_path) == (4, [])
    assert not (tmp_path / "rows").exists()
    gathered = RowFile(tmp_path)
    assert gathered.read() == RowFile(MEASURED).read()
    found = {loose_name(one.identity, asdict(one.row.plan)): one.row.as_dict() for one in gathered.read()}
    assert json.loads(json.dumps(found)) == loose


def test_a_row_of_another_table_stays_where_it_is(tmp_path: Path) -> None:
    loose = make_loose(tmp_path)
    other = tmp_path / "rows" / "flowcut-64-default-0123456789.json"
    other.write_text(json.dumps(loose["flowcut-64-default-2058a510f2.json"]))
    assert gather(tmp_path) == (4, [other])
    assert list((tmp_path / "rows").iterdir()) == [other]


def test_nothing_is_deleted_when_the_file_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = make_loose(tmp_path)
    monkeypatch.setattr(RowFile, "find", lambda *_: None)
    with pytest.raises(RuntimeError, match="as it was"):
        gather(tmp_path)
    assert {path.name for path in (tmp_path / "rows").iterdir()} == set(loose)
