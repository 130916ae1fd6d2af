"""The table of all image-text-to-text classes on the page of families, from ``classes.json``."""

from __future__ import annotations

from measured import markdown
from measured_tables import table

from flowcut.models.classes import known_classes


@table("classes/supported")
def supported() -> str:
    """The classes in which something can be cut."""
    lines = [
        [
            f"`{row.class_name}`",
            f"`{row.model_type}`",
            *("yes" if not getattr(row, stage) else "no" for stage in ("tower", "projector", "decoder")),
            "yes" if row.video else "",
        ]
        for row in known_classes()
        if row.supported
    ]
    return markdown(["class", "model type", "tower cut", "projector cut", "decoder cut", "video"], lines)


@table("classes/parts")
def parts() -> str:
    """Why a stage of a supported class cannot be cut."""
    lines = [
        [f"`{row.class_name}`", stage, getattr(row, stage)]
        for row in known_classes()
        for stage in ("tower", "projector", "decoder")
        if row.supported and getattr(row, stage)
    ]
    return markdown(["class", "stage", "the class"], lines)


@table("classes/refused")
def refused() -> str:
    """The classes in which nothing can be cut, or of which it was not shown."""
    lines = [[f"`{row.class_name}`", f"`{row.model_type}`", row.reason] for row in known_classes() if not row.supported]
    return markdown(["class", "model type", "why not"], lines)
