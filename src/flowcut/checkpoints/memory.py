"""What a checkpoint remembers: the method it was trained with, in ``flowcut.json`` beside its weights.

Nothing of ours is in ``config.json``, so that the checkpoint loads everywhere as any other. Reading and writing that
file is here; :mod:`.remembering` saves and loads whole models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from .. import __version__
from ..errors import FlowCutError
from ..methods import METHODS, FlowCut, Method
from ..methods.naming import describe

MEMORY = "flowcut.json"
"""The file's name."""

SCHEDULE = "flowcut-schedule.json"
"""The name of the calibration of ``FlowCut(schedule="FILE.json")``, which is copied beside it."""

FORMAT = 1
"""Raised when what the file holds changes, so that an older flowcut refuses what it cannot read."""

PUBLISHED: Mapping[str, int] = {"llava-v1.5-7b-flowcut128": 128, "llava-v1.5-7b-flowcut192": 192}
"""The checkpoints that FlowCut's authors trained, and the visual tokens they say these were trained with."""


@dataclass(frozen=True)
class Memory:
    """What a checkpoint was trained with.

    Attributes:
        method: the method, with its budget.
        source: where that is written, in words.
        base: for adapters, the model they belong to, as ``load_model`` takes it; ``None`` where PEFT's own file says
            it.
    """

    method: Method
    source: str = MEMORY
    base: str | None = None

    def difference(self, method: Method) -> str:
        """A sentence about the budget, where ``method`` has another one than the training had, else empty."""
        if (method.target_num, method.retain_ratio) == (self.method.target_num, self.method.retain_ratio):
            return ""
        return (
            f"The checkpoint was trained with {budget_of(self.method)} ({self.source}), but is now run with "
            f"{budget_of(method)}. A model gets used to the budget that it is trained with."
        )

    def __str__(self) -> str:
        """The method as text, with its budget."""
        return describe(self.method, budget=True)


def budget_of(method: Method) -> str:
    """A method's budget as a user gives it."""
    name = "target_num" if method.target_num is not None else "retain_ratio"
    return f"{name}={getattr(method, name)}"


def check_memorable(method: Method) -> None:
    """Refuse a method that could not be found again by its name.

    Raises:
        FlowCutError: it is not in ``flowcut.METHODS``.
    """
    if METHODS.get(method.name) is not type(method):
        raise FlowCutError(
            f"{type(method).__name__} is not one of flowcut's methods, so a checkpoint could not say how to make it "
            f"again. Register it with flowcut.METHODS[{method.name!r}] = {type(method).__name__}, before saving and "
            "before loading, or save with model.save_pretrained and attach it yourself."
        )


def write_memory(method: Method, folder: str | Path, *, base: str | None = None) -> Path:
    """Write ``flowcut.json`` into a checkpoint's folder; all settings, so that later defaults do not change it.

    The file of a calibrated schedule is copied beside it.

    Args:
        method: what the checkpoint was trained with.
        folder: the checkpoint's, made if it is not there.
        base: see :class:`Memory`.

    Returns:
        The file.

    Raises:
        FlowCutError: see :func:`check_memorable`.
        OSError: the file of the method's schedule is not there any more.
    """
    check_memorable(method)
    path = Path(folder) / MEMORY
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    if has_file(settings):
        own = path.with_name(SCHEDULE)
        if not (own.exists() and own.samefile(settings["schedule"])):
            shutil.copyfile(settings["schedule"], own)
        settings["schedule"] = SCHEDULE
    told: dict[str, Any] = {"format": FORMAT, "flowcut": __version__, "method": method.name, "settings": settings}
    if base is not None:
        told["base"] = base
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return path


def read_memory(path_or_id: str | Path) -> Memory | None:
    """What a checkpoint was trained with, or ``None`` where nothing says it.

    It stands in ``flowcut.json``; for checkpoints in LLaVA's own format else under ``target_num`` in ``config.json``,
    else the checkpoint is one of the two that FlowCut's authors published (:data:`PUBLISHED`).

    Args:
        path_or_id: a folder or a hub id.

    Raises:
        FlowCutError: the file was written by a newer flowcut, or cannot be read.
    """
    file = optional_file(path_or_id, MEMORY)
    if file is not None:
        return parse_memory(file, optional_file(path_or_id, SCHEDULE))
    config = optional_file(path_or_id, "config.json")
    told = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
    if "mm_projector_type" in told and told.get("target_num") is not None:
        return Memory(FlowCut(target_num=told["target_num"]), "target_num in its config.json")
    name = str(path_or_id).rstrip("/").rpartition("/")[2]
    if name in PUBLISHED:
        return Memory(FlowCut(target_num=PUBLISHED[name]), "as its authors say")
    return None


def has_file(settings: Mapping[str, Any]) -> bool:
    """Whether a method's settings name a file: that of its schedule."""
    return str(settings.get("schedule", "")).endswith(".json")


def parse_memory(file: Path, schedule: Path | None) -> Memory:
    """What a ``flowcut.json`` says.

    Args:
        file: it.
        schedule: the calibration beside it.

    Raises:
        FlowCutError: see :func:`read_memory`.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        version, name, settings = told["format"], told["method"], dict(told["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise FlowCutError(
            f"{file} is not a file that flowcut wrote ({type(error).__name__}: {error}). Without it the checkpoint "
            "loads as any other; attach a method yourself."
        ) from error
    if version != FORMAT:
        raise FlowCutError(
            f"{file} has format {version!r}, this flowcut ({__version__}) reads {FORMAT}. It was written by flowcut "
            f"{told.get('flowcut')}; install that version or a newer one."
        )
    if name not in METHODS:
        raise FlowCutError(
            f"{file} names the method {name!r}, which is not known here; known: {', '.join(METHODS)}. Register its "
            f"class with flowcut.METHODS[{name!r}] = ... first, or load the model without flowcut and attach it."
        )
    if has_file(settings):
        if settings["schedule"] != SCHEDULE or schedule is None:
            raise FlowCutError(
                f"{file} names the schedule {settings['schedule']!r}. Only {SCHEDULE}, beside it, is opened; put the "
                "file there, under that name, or load the model without flowcut and attach the method yourself."
            )
        settings["schedule"] = str(schedule)
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        method = METHODS[name](**given)
    except (TypeError, ValueError) as error:
        raise FlowCutError(f"{file} does not fit the method {name!r} of flowcut {__version__}: {error}") from error
    return Memory(method, base=told.get("base"))


def optional_file(path_or_id: str | Path, name: str) -> Path | None:
    """A file of a checkpoint, from its folder or from the hub; ``None`` where it is not there or cannot be reached."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_absolute() or str(path_or_id).count("/") != 1:
        return None
    found = cached_file(
        str(path_or_id),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
