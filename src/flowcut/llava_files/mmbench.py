"""MMBench's ``.tsv``: rows with the picture in base64, read as pandas' ``read_table`` reads them, which LLaVA uses."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("index", "question", "hint", "image")

PANDAS = "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"
NOTHING = frozenset(["", *PANDAS.split("|")])
"""Cells that pandas takes for missing."""


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row by its columns' names, with where it stands; what is missing is ``None``, the index a whole number.

    Raises:
        ValueError: a column that LLaVA's script reads is missing, a row has more cells than there are columns, or the
            file is not UTF-8.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a picture is one cell
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        try:
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{path} has no column {', '.join(missing)}, so it is not a file of MMBench.")
            for number, row in enumerate(rows, start=1):
                if None in row:
                    raise ValueError(f"{path}, row {number}: it has more cells than there are columns.")
                cells: dict[str, Any] = {name: None if is_nothing(cell) else cell for name, cell in row.items()}
                cells["index"] = whole(cells["index"])
                if cells["image"] is None:
                    raise ValueError(f"{path}, row {number}: it has no image.")
                yield f"row {number}", cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a table in UTF-8 with tabs between its cells ({error}).") from error


def is_nothing(cell: str | None) -> bool:
    """Whether LLaVA's script takes a cell for missing."""
    return cell is None or cell in NOTHING or cell.lower() in ("nan", "none")


def whole(cell: Any) -> Any:
    """A whole number where the cell is one."""
    try:
        return int(cell)
    except (TypeError, ValueError):
        return cell
