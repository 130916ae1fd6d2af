"""What can be cut in every image-text-to-text class of transformers, as it was found on tiny models of them.

The rows are in ``classes.json``, which ``tools/list_classes.py`` writes and a test compares with the installed
transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("classes.json")


@dataclass(frozen=True)
class ClassSupport:
    """What can be cut in one class.

    Attributes:
        model_type: of its config.
        class_name: the class.
        tower, projector, decoder: empty where a cut is possible at that stage, else why it is not.
        video: whether videos are cut as well.
        batch: whether batches of prompts of different lengths, padded on either side, give what single runs give.
        tested: whether the tests run on a tiny model of it.
        reason: why nothing can be cut; empty where something can.
    """

    model_type: str
    class_name: str
    tower: str = ""
    projector: str = ""
    decoder: str = ""
    video: bool = False
    batch: bool = False
    tested: bool = False
    reason: str = ""

    @property
    def supported(self) -> bool:
        """Whether there is a stage at which it can be cut, and tests have shown it."""
        return self.tested and not self.reason and not (self.tower and self.projector and self.decoder)


@cache
def known_classes() -> tuple[ClassSupport, ...]:
    """All rows, by class name."""
    return tuple(ClassSupport(**row) for row in json.loads(FILE.read_text(encoding="utf-8")))
