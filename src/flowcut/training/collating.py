"""Samples into one batch, which holds a picture in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .conversation import IGNORED, Conversations
from .pictures import BlankStore
from .samples import Sample, Turn

TEXT = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "token_type_ids")
"""Tensors with one entry for each token."""


BAD = "bad_samples"
"""Beside a batch's tensors, the bad samples (name and reason) that were met when it was read."""


class Collator:
    """Pads text on the right and joins the pictures of all samples.

    A batch without any picture does not run the vision tower. Where the weights are spread over processes (FSDP,
    DeepSpeed's ZeRO-3) the others wait for that process to gather the tower's weights, and the run hangs until it times
    out, with or without cutting; DDP misses gradients. Where the language model is frozen, the loss of such a batch has
    no gradient at all. And projector and tower then have none: an optimizer passes them over, though it moves them, by
    its momentum, where another process has seen a picture. So such a batch gets one more row, with a blank picture and
    no label. That runs the tower and enters no loss: its gradients are zero, and the mean over labels does not count
    it.

    Args:
        processor: the model's.
        extra: the row that is then added, see :func:`blank_row`; ``None`` adds none, as suits a single process that
            trains the language model alone.
    """

    def __init__(self, processor: Any, extra: dict[str, Tensor] | None = None) -> None:
        pad = getattr(processor.tokenizer, "pad_token_id", None)
        self.fillings = {"input_ids": 0 if pad is None else pad, "labels": IGNORED}
        self.extra = extra

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch.

        Args:
            samples: as :meth:`Conversations.encode` makes them.
        """
        rows = [{name: value for name, value in sample.items() if name != BAD} for sample in samples]
        bad = {name: reason for sample in samples for name, reason in sample.get(BAD, {}).items()}
        if self.extra is not None and not any(holds_picture(row) for row in rows):
            rows.append(self.extra)
        width = max(row["input_ids"].shape[1] for row in rows)
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            if name in TEXT:
                full = [row.get(name, torch.zeros_like(row["input_ids"])) for row in rows]
                batch[name] = torch.cat([padded(one, width, self.fillings.get(name, 0)) for one in full])
            else:
                batch[name] = joined([row[name] for row in rows if name in row])
        return {**batch, BAD: bad} if bad else batch


def holds_picture(sample: dict[str, Tensor]) -> bool:
    """Whether a sample has tensors beside its text."""
    return any(name not in TEXT for name in sample)


def padded(rows: Tensor, width: int, filling: int) -> Tensor:
    """``[1, L]`` as ``[1, width]``, filled up on the right."""
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=filling)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of pictures one behind the other; other dimensions (tiles, sides) are filled up with zeros."""
    sides = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    full = []
    for part in parts:
        missing = [(0, side - size) for side, size in zip(sides, part.shape[1:], strict=True)]
        full.append(torch.nn.functional.pad(part, [one for pair in reversed(missing) for one in pair]))
    return torch.cat(full)


def blank_row(writer: Conversations) -> dict[str, Tensor]:
    """A conversation about a blank picture without labels, see :class:`Collator`."""
    turns = (Turn("user", ({"type": "image"},)), Turn("assistant", ({"type": "text", "text": "."},)))
    row = writer.encode(Sample("blank", turns, ("blank",), (), BlankStore()), 1)
    return {**row, "labels": torch.full_like(row["labels"], IGNORED)}
