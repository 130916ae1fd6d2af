"""The rows of a table that the harness measures: what each runs, and where it keeps what it found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import __version__
from ..methods import METHODS
from ..methods.naming import read_expressions
from .arguments import UNCUT, built, parts_of
from .registration import OURS, WRAPPED

DONE = "done.json"
"""In a row's folder: it is finished, and which files hold its results."""

INSTALL = 'pip install ".[lmms-eval]"'


@dataclass(frozen=True)
class HarnessSettings:
    """What the rows of a table have in common.

    Attributes:
        model: a folder, a hub id, or ``flowcut-mini``.
        tasks: names of lmms-eval's tasks.
        wrapped: lmms-eval's own class; ``None`` for ``flowcut_hf``.
        batch_size: questions in one pass.
        limit: at most so many questions of each task; ``None`` for all.
        device, dtype: by name; ``None`` for the best, or what the class does.
        include_path: a folder with tasks of one's own.
        model_args: more arguments for the class, as lmms-eval writes them.
        force_simple: see ``lmms-eval --force_simple``.
        pairs: whether some calls run uncut as well, for the efficiency report.
    """

    model: str
    tasks: tuple[str, ...]
    wrapped: str | None = None
    batch_size: int = 1
    limit: int | None = None
    device: str | None = None
    dtype: str | None = None
    include_path: str | None = None
    model_args: str = ""
    force_simple: bool = False
    pairs: bool = True

    @property
    def registered(self) -> str:
        """The name behind ``--model``."""
        return OURS if self.wrapped is None else WRAPPED

    @property
    def prompts_of(self) -> str:
        """Whose prompts a task uses that keeps some for certain models."""
        return OURS if self.wrapped is None else self.wrapped


@dataclass(frozen=True)
class HarnessRow:
    """One row.

    Attributes:
        method: an expression, or ``none``.
        target_num: its budget; ``None`` where there is none to give.
        settings: see :class:`HarnessSettings`.
        versions: of flowcut and lmms-eval.
    """

    method: str
    target_num: int | None
    settings: HarnessSettings
    versions: tuple[str, str] = field(default_factory=lambda: (__version__, harness_version()))

    @property
    def label(self) -> str:
        """Method and budget on one line."""
        return self.method if self.target_num is None else f"{self.method} {self.target_num}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the row's figures depend on."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def folder(self, output: Path) -> Path:
        """Where it keeps everything; another identity has another folder."""
        told = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]
        return output / "rows" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.label).strip('-')}-{told}"

    def model_args(self, folder: Path) -> str:
        """``--model_args`` of its run."""
        settings = self.settings
        given = {
            "pretrained": settings.model,
            "wrapped": settings.wrapped,
            "dtype": settings.dtype,
            "method": self.method,
            "target_num": self.target_num,
            "efficiency": folder / "efficiency",
            "efficiency_pairs": str(settings.pairs).lower(),
            "journal": folder / "answers",
        }
        own = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ",".join([*own, *parts_of(settings.model_args)])


def plan_harness_rows(methods: str, budgets: Sequence[int], settings: HarnessSettings) -> list[HarnessRow]:
    """The uncut model first, then every method at every budget.

    Args:
        methods: as :func:`~flowcut.methods.naming.read_expressions` takes them; ``none`` may be among them. One that
            names its own budget is run at that alone.
        budgets: visual tokens per image.
        settings: what the rows have in common.

    Raises:
        ValueError: an unknown method or setting, a bad budget, a comma in a path, or there is no task.
    """
    if not settings.tasks:
        raise ValueError("--tasks names no task of lmms-eval; such as --tasks pope,gqa.")
    names = [part for part in parts_of(methods) if part.lower() not in (UNCUT, "uncut")]
    rows = [HarnessRow(UNCUT, None, settings)]
    for expression in read_expressions(",".join(names), METHODS) if names else []:
        if expression.has_budget:
            built(expression)
            rows.append(HarnessRow(str(expression), None, settings))
            continue
        for budget in budgets:
            expression.build(budget)
            rows.append(HarnessRow(str(expression), budget, settings))
    return rows


def harness_version() -> str:
    """lmms-eval's version; empty where it is not installed."""
    try:
        return version("lmms-eval")
    except PackageNotFoundError:
        return ""


def check_harness() -> None:
    """Refuse where lmms-eval is not installed.

    Raises:
        ValueError: says how to install it.
    """
    if find_spec("lmms_eval") is None:
        raise ValueError(f"lmms-eval is not installed. Install it with flowcut: {INSTALL}")
