#!/usr/bin/env python3
"""Refuse a wheel of flowcut that lacks a file of the package, or holds one that is not of it."""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

source = Path(__file__).parents[1] / "src"
expected = {
    str(file.relative_to(source))
    for file in (source / "flowcut").rglob("*")
    if file.is_file() and "__pycache__" not in file.parts
}
held = {name for name in ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
print(f"{len(held)} files; missing: {sorted(expected - held)}; not of the package: {sorted(held - expected)}")
sys.exit(held != expected)
