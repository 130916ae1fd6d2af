"""Gathers the loose rows of older output folders, ``rows/*.json``, into the one file that ``flowcut eval`` reads now.

    python tools/gather_rows.py docs/measured/budgets ...

A loose file is deleted only after the new file has been read back and holds the same row, number for number and answer
for answer. What was measured is taken from the folder's ``table.json``; a row that is not of this table stays loose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from flowcut.tasks.asking import RowPlan
from flowcut.tasks.rows import Identity, Row, RowFile


def loose_name(identity: Identity, plan: dict[str, Any]) -> str:
    """The name of a loose file, as older versions made it."""
    described = json.dumps([identity, plan], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:10]
    name = str(plan["method"]).partition("(")[0]
    return f"{name}-{plan['target_num'] or 'all'}-{plan['positions'] or 'default'}-{digest}.json"


def gather(folder: Path) -> tuple[int, list[Path]]:
    """Gather a folder's loose rows.

    Returns:
        how many rows were taken up and are no longer loose, and the loose files that are not of this table.

    Raises:
        RuntimeError: the new file does not hold what was loose; nothing is deleted then.
    """
    table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    shown = table.pop("rows")
    order = [RowPlan(one["method"], one["target_num"], _positions(one["positions"])) for one in shown]
    loose = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").glob("*.json"))}
    mine = {path: stored for path, stored in loose.items() if path.name == loose_name(table, stored["plan"])}
    store = RowFile(folder)
    store.add(table, *(Row.from_dict(stored) for stored in mine.values()))
    store.arrange(table, order)
    for path, stored in mine.items():
        found = store.find(table, RowPlan(**stored["plan"]))
        if found is None or json.dumps(found.as_dict()) != json.dumps(stored):
            raise RuntimeError(f"{path} is not in {store.path} as it was.")
    for path in mine:
        path.unlink()
    others = [path for path in loose if path not in mine]
    if not others:
        (folder / "rows").rmdir()
    return len(mine), others


def _positions(shown: str) -> Any:
    return None if shown == "default" else shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        gathered, others = gather(folder)
        left = "".join(f"\n  not of this table, left as it is: {path}" for path in others)
        print(f"{folder}: {gathered} rows gathered{left}")


if __name__ == "__main__":
    main()
