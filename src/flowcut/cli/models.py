"""The command ``flowcut models``."""

from __future__ import annotations

from typing import Any

from .options import JsonOption
from .tables import print_list


def models_command(as_json: JsonOption = False) -> None:
    """List the image-text-to-text classes of the installed transformers, and what can be cut in each."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from ..models.classes import known_classes

    known = {row.model_type: row for row in known_classes()}
    rows: list[dict[str, Any]] = []
    for model_type, class_name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        row = known.get(model_type)
        if row is None:
            stages: dict[str, Any] = dict.fromkeys(("tower", "projector", "decoder"), "not known yet: flowcut inspect")
            rows.append({"name": model_type, "class": class_name, **stages, "video": False, "tested": False})
            continue
        stages = {stage: getattr(row, stage) or "yes" for stage in ("tower", "projector", "decoder")}
        if row.reason:
            stages = {**dict.fromkeys(stages, "no"), "decoder": f"no: {row.reason}"}
        rows.append({"name": model_type, "class": class_name, **stages, "video": row.video, "tested": row.tested})
    print_list("models", rows, as_json)
