"""Print the modules of which the tests run less than nine tenths, lines and branches, with the reason for each.

Reads what ``pytest --cov=flowcut`` left in ``.coverage``; the reasons stand in ``pyproject.toml``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ENOUGH = 90.0


def main() -> None:
    """Print the table."""
    reasons = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["flowcut"]["less-covered"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(report)], check=True)
        measured = json.loads(report.read_text())
    print(f"{measured['totals']['percent_covered']:.1f} % of lines and branches are covered")
    for file, one in sorted(measured["files"].items()):
        share = one["summary"]["percent_covered"]
        name = file.replace("\\", "/").rpartition("flowcut/")[2]
        if share < ENOUGH:
            reason = next((why for place, why in reasons.items() if name.startswith(place)), "NO REASON GIVEN")
            print(f"{share:5.1f} %  {name}: {reason}")


if __name__ == "__main__":
    main()
