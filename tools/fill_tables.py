"""Writes every table that is made of stored rows: the pages' and ``docs/measured``'s.

    python tools/fill_tables.py           writes them
    python tools/fill_tables.py --check   writes nothing, and fails where one is not what the rows say

A page says where a table goes: between ``<!-- table: budgets/accuracy -->`` and ``<!-- end -->``. What stands between
is written anew. A new table is a function in one of the
``*_tables.py`` beside this file.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import class_tables  # noqa: F401  tables have names once their module is imported
import kept_tables  # noqa: F401
import method_tables  # noqa: F401
import plus_tables  # noqa: F401
import train_tables  # noqa: F401
from measured import FOLDER, load
from measured_tables import TABLES

from flowcut.view.report import table_files

ROOT = Path(__file__).parents[1]
START = re.compile(r"<!-- table: (\S+) -->\n")
END = "<!-- end -->"


def filled(page: str) -> str:
    """A page with every table between markers made anew.

    Raises:
        ValueError: a marker names no table, or has no end.
    """
    parts = START.split(page)
    written = [parts[0]]
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name not in TABLES:
            raise ValueError(f"There is no table {name!r}; known: {', '.join(sorted(TABLES))}.")
        if END not in text:
            raise ValueError(f"The table {name!r} has no {END} behind it.")
        behind = text.split(END, 1)[1]
        written.append(f"<!-- table: {name} -->\n\n{TABLES[name]()}\n{END}{behind}")
    return "".join(written)


def markdown_pages() -> list[Path]:
    """Every Markdown page of the repository that people write."""
    folders = ("docs", "packages", "recipes", "examples")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*.md"))]
    return [path for path in sorted(found) if FOLDER not in path.parents]


def pages() -> list[Path]:
    """The pages with a marker."""
    return [path for path in markdown_pages() if START.search(path.read_text(encoding="utf-8"))]


def texts() -> dict[Path, str]:
    """Every file with tables, and what it has to hold."""
    made = {page: filled(page.read_text(encoding="utf-8")) for page in pages()}
    for folder in sorted(path.parent for path in FOLDER.glob("*/rows.jsonl.gz")):
        identity, rows = load(folder.name)
        made |= {folder / name: text for name, text in table_files(identity, rows).items()}
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which files differ")
    check = parser.parse_args().check
    differing = [(path, text) for path, text in texts().items() if not holds(path, text)]
    for path, text in differing:
        print(f"{'differs' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8", newline="")
    if check and differing:
        sys.exit(1)


def holds(path: Path, text: str) -> bool:
    """Whether a file is there with just this text."""
    return path.is_file() and path.read_bytes() == text.encode("utf-8")


if __name__ == "__main__":
    main()
