"""Twelve samples and a tiny model for whole runs of ``flowcut train``, and configurations of such runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_checkpoint
import torch
import yaml
from safetensors.torch import load_file

from flowcut.training.reading import read_config


def make_place(folder: Path) -> Path:
    """Write a tiny checkpoint, pictures and twelve samples into a folder, every third without a picture."""
    tiny_checkpoint.save_checkpoint(folder / "model")
    rows = []
    for number in range(12):
        asked = " ".join(f"word{number + step}" for step in range(1 + number % 4))
        row: dict[str, Any] = {"id": str(number)}
        if number % 3:
            tiny_checkpoint.save_picture(folder / f"{number}.png", 100 + number, 90)
            row["image"], asked = f"{number}.png", f"<image>\n{asked}"
        answer = f"word{30 + number}"
        row["conversations"] = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def config_of(place: Path, name: str, **changes: Any) -> Any:
    """A configuration; nested keys are added to the usual ones."""
    told: dict[str, Any] = {
        "model": str(place / "model"),
        "output": str(place / name),
        "method": "flowcut(target_num=9)",
        "data": {"train": str(place / "rows.json")},
        "tune": {"rank": 2, "dropout": 0.1},
        "optimize": {"steps": 5, "batch": 2, "accumulate": 2, "rate": 1e-2},
        "report": {"log_every": 1, "save_every": 2},
    }
    for key, value in changes.items():
        told[key] = {**told.get(key, {}), **value} if isinstance(value, dict) else value
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told))
    return read_config(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has saved."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)
