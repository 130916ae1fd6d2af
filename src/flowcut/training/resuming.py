"""The checkpoints of a run: from which one it goes on, whether it is finished, and what is left of it then."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml
from transformers import TrainerState

from ..methods.naming import describe
from .config import UNCUT, TrainConfig
from .reading import named_method
from .trainer import RUN

MAY_CHANGE = ("report", "output")
"""Settings that may differ when a run goes on."""

STATE = "trainer_state.json"
"""What transformers' Trainer knows of a run, in each checkpoint."""

OF_TRAINING = (
    STATE,
    RUN,
    "optimizer*",
    "scheduler.pt",
    "rng_state*",
    "pytorch_model_fsdp*",
    "global_step*",
    "latest",
    "*.py",
)
"""What a checkpoint holds beside the weights and what belongs to them."""


def last_checkpoint(config: TrainConfig) -> Path | None:
    """The last complete checkpoint of the same run, or ``None``.

    Raises:
        ValueError: the output folder holds a run with other settings.
    """
    folder = Path(config.output)
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{RUN}") if step_of(path.parent) >= 0]
    if not complete:
        return None
    last = max(complete, key=step_of)
    before = yaml.safe_load((last / RUN).read_text(encoding="utf-8"))
    now = config.as_dict()
    if now["method"] is None:
        now["method"] = before["method"]
    elif now["method"] != UNCUT:
        now["method"] = describe(named_method(config), budget=True)  # type: ignore[arg-type]
    differing = [key for key in now if key not in MAY_CHANGE and now[key] != before.get(key)]
    if differing:
        raise ValueError(
            f"{config.output} holds a run with other settings ({', '.join(differing)}). Choose another output, or "
            "--fresh to begin anew."
        )
    return last


def finished(checkpoint: Path) -> bool:
    """Whether a checkpoint is that of the last update; transformers' Trainer would make one more."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    return bool(state.global_step >= state.max_steps)


def step_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was made; -1 for another folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found.group(1)) if found else -1


def remove_checkpoints(config: TrainConfig) -> None:
    """Remove the checkpoints of an earlier run, which a later one would go on from."""
    for path in Path(config.output).glob("checkpoint-*"):
        if step_of(path) >= 0:
            shutil.rmtree(path)


def copy_weights(checkpoint: Path, config: TrainConfig) -> None:
    """Copy what a checkpoint says of the trained model into the output folder."""
    shutil.copytree(checkpoint, config.output, ignore=shutil.ignore_patterns(*OF_TRAINING), dirs_exist_ok=True)
