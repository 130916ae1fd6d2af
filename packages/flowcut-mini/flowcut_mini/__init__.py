"""The files of flowcut-mini. Load the model with ``flowcut.checkpoints.load_mini()``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the weights, configs and tokenizer lie; ``manifest.json`` names the SHA-256 of each."""
