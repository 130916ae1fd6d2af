"""Requests as the harness makes them, without the harness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """What our code reads of lmms-eval's ``Instance``."""

    doc_id: int
    args: tuple[Any, ...] = ("what?", {"max_new_tokens": 3}, None, 0, "task", "test")
    idx: int = 0
    request_type: str = "generate_until"
    task_name: str = "task"
    metadata: dict[str, Any] = field(default_factory=dict)
