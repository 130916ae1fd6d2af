"""The built-in evaluation tasks: questions about rendered scenes whose every patch is known."""

from __future__ import annotations

from .metrics import TaskScore, normalise, right, score, wilson
from .split import TASKS, TaskQuestion, TaskScene, TaskSplit, load_split, read_split, write_split

__all__ = [
    "TASKS",
    "TaskQuestion",
    "TaskScene",
    "TaskScore",
    "TaskSplit",
    "load_split",
    "normalise",
    "read_split",
    "right",
    "score",
    "wilson",
    "write_split",
]
