"""Writes ``src/flowcut/models/classes.json``: what can be cut in every image-text-to-text class of transformers.

    python tools/list_classes.py

Every class that ``tests/tiny_classes.py`` has a tiny model of is built on the meta device and taken apart; what is
found is what ``attach`` finds. Classes of other releases of transformers keep their rows.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import tiny_classes  # noqa: E402

from flowcut.models.classes import FILE, ClassSupport, known_classes  # noqa: E402

if __name__ == "__main__":
    before = {row.model_type: row for row in known_classes()} if FILE.exists() else {}
    rows = {**before, **{name: tiny_classes.support_of(name) for name in tiny_classes.CLASSES}}
    ordered: list[ClassSupport] = sorted(rows.values(), key=lambda row: (row.class_name.lower(), row.model_type))
    lines = [json.dumps({key: value for key, value in asdict(row).items() if value}) for row in ordered]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{sum(row.supported for row in ordered)} of {len(ordered)} classes can be cut")
