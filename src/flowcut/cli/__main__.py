"""``python -m flowcut.cli``: the command line, for launchers that start a module in several processes."""

from __future__ import annotations

if __name__ == "__main__":
    from . import app

    app()
