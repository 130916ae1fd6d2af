"""The command ``flowcut models``."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from .options import JsonOption
from .tables import cell, plain_table

STAGES = ("tower", "projector", "decoder")
UNKNOWN = "not known yet: flowcut inspect"
"""Of a class that this release has not heard of."""


def models_command(as_json: JsonOption = False) -> None:
    """List the image-text-to-text classes of the installed transformers, and what can be cut in each."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from ..models.classes import known_classes

    known = {row.model_type: row for row in known_classes()}
    rows: list[dict[str, Any]] = []
    for model_type, class_name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        row = known.get(model_type)
        if row is None:
            stages: dict[str, Any] = dict.fromkeys(STAGES, UNKNOWN)
            rows.append({"name": model_type, "class": class_name, **stages, "video": False, "tested": False})
            continue
        stages = {stage: getattr(row, stage) or "yes" for stage in STAGES}
        if row.reason:
            stages = {**dict.fromkeys(stages, "no"), "decoder": f"no: {row.reason}"}
        rows.append({"name": model_type, "class": class_name, **stages, "video": row.video, "tested": row.tested})
    if as_json:
        typer.echo(json.dumps({"models": rows}))
    else:
        show(Console(), rows)


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print where each model can be cut, then why not where it can't."""
    table = plain_table(left=("model type", *STAGES, "video", "tested"))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        can = ("?" if row[stage] == UNKNOWN else row[stage] == "yes" for stage in STAGES)
        table.add_row(escape(row["name"]), *(cell(value) for value in (*can, row["video"], row["tested"])))
        for stage in STAGES:
            if row[stage] not in ("yes", "no", UNKNOWN):
                reason = row[stage].removeprefix("no: ")
                place = "" if row[stage] != reason else f" ({stage})"
                reasons.setdefault(reason, []).append(f"{row['name']}{place}")
    console.print(table)
    console.print("\n[bold]Why not[/]")
    for reason, names in reasons.items():
        console.print(f"[cyan]{escape(', '.join(names))}[/]: {escape(reason)}")
    console.print(
        "\nflowcut inspect MODEL tells more of one, and of a class that is not known here (?); --json has the classes."
    )
