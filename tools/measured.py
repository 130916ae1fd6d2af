"""What is stored in ``docs/measured``, by table, method, budget and positions, and how a figure is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from flowcut.tasks.paired import Difference, hits_of, paired_difference
from flowcut.tasks.rows import Identity, Row, RowFile

FOLDER = Path(__file__).parents[1] / "docs" / "measured"


@lru_cache
def load(table: str) -> tuple[Identity, tuple[Row, ...]]:
    """What a table's rows were measured on, and the rows in their order."""
    store = RowFile(FOLDER / table)
    return store.read()[0].identity, tuple(store.table())


def rows_of(table: str) -> tuple[Row, ...]:
    """A table's rows in their order."""
    return load(table)[1]


def row_of(table: str, method: str = "uncut", target_num: int | None = None, positions: str | None = None) -> Row:
    """One row.

    Raises:
        LookupError: it has not been measured.
    """
    for row in rows_of(table):
        if (row.plan.method, row.plan.target_num, row.plan.positions) == (method, target_num, positions):
            return row
    raise LookupError(f"{table} has no row of {method}, {target_num}, {positions}")


def difference(table: str, pair: Sequence[Row], tasks: Sequence[str] | None = None) -> Difference:
    """How much more the first of a pair answers than the second, on the questions of ``table``."""
    identity = load(table)[0]
    first, second = pair
    return paired_difference(hits_of(identity, first), hits_of(identity, second), tasks)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [list(header), ["---"] * len(header), *(list(line) for line in lines)]
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in cells)


def percent(share: float, digits: int = 0) -> str:
    """A share in %."""
    return f"{100 * share:.{digits}f}"


def interval(low: float, high: float) -> str:
    """A 95% interval in %."""
    return f"({percent(low)} to {percent(high)})"


def average(row: Row) -> str:
    """A row's average accuracy with its interval."""
    return f"{percent(row.average, 1)} {interval(*row.average_interval)}"


def points(found: Difference) -> str:
    """A difference in points with its interval."""
    return f"{percent(found.mean, 1)} ({percent(found.low, 1)} to {percent(found.high, 1)})"


def of_uncut(row: Row, uncut: Row) -> str:
    """Average accuracy as a share of the uncut model's."""
    return f"{percent(row.average / uncut.average)}%"


def named(method: str) -> str:
    """A method as the pages write it: code, where one can type it."""
    return method if method in ("uncut", "oracle") else f"`{method}`"
