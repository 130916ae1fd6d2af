"""The set that ships for ``flowcut train`` is what its command writes."""

from __future__ import annotations

from pathlib import Path

from flowcut.training.samples import TOY
from recipes.mini.toy import write_toy


def test_the_toy_set_that_ships_is_written_again(tmp_path: Path) -> None:
    assert write_toy(tmp_path) == 200
    assert (tmp_path / "toy.json").read_text() == (TOY / "toy.json").read_text()
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {path.name for path in (TOY / "pictures").iterdir()} and len(names) == 150
