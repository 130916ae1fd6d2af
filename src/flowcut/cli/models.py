"""The command ``flowcut models``."""

from __future__ import annotations

from .options import JsonOption
from .tables import print_list


def models_command(as_json: JsonOption = False) -> None:
    """List the supported models."""
    from ..models import FAMILIES

    rows = [
        {
            "name": family.name,
            "class": family.class_name,
            "vision_towers": list(family.towers),
            "examples": list(family.hub_ids),
        }
        for family in FAMILIES
    ]
    print_list("models", rows, as_json)
