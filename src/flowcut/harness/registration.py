"""What lmms-eval finds through the entry-point group ``lmms_eval.models``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WRAPPED = "flowcut"
OURS = "flowcut_hf"


def manifests() -> Iterator[Any]:
    """The models that flowcut brings: ``flowcut`` around the harness's own classes, and ``flowcut_hf``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    for name, module, chat in ((WRAPPED, "wrapped", "Flowcut"), (OURS, "chat", "FlowcutHf")):
        place = f"{__package__}.{module}.{chat}"
        yield ModelManifest(model_id=name, simple_class_path=f"{place}Simple", chat_class_path=place)
