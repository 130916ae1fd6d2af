"""Several samples in one row, told apart by positions that begin again, as training without padding writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...algorithm.columns import ColumnCut
from ...errors import FlowCutError
from ...methods.base import Method

LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments that tell attention where samples of a row begin, in uncut columns."""


def starts_of_samples(call: dict[str, Any]) -> Tensor | None:
    """Boolean ``[B, L]``: where a sample begins in a row that several share, as transformers finds it out.

    That is where the position is not the one behind the last column's, in a call without mask and without cache;
    ``None`` where no row is shared.
    """
    positions: Tensor | None = call.get("position_ids")
    if positions is None or call.get("attention_mask") is not None:
        return None
    if positions.dim() == 3:
        if len(positions) != 4:
            # The axes of a picture alone; positions in the text would stand in front of them.
            return None
        positions = positions[0]
    starts = torch.diff(positions, prepend=positions[:, :1] - 1, dim=1) != 1
    return starts if bool(starts.any()) else None


def check_packed(method: Method, cut: ColumnCut, inside: bool, grid_positions: bool) -> None:
    """Refuse rows that several samples share where a cut would mix them up.

    Args:
        method: the method.
        cut: the columns that stay.
        inside: whether it cuts inside the language model.
        grid_positions: whether positions are places in a picture.

    Raises:
        FlowCutError: says what to do.
    """
    reason = ""
    if inside:
        reason = "cuts inside the language model by the last token of a row, which belongs to the last sample alone"
    elif method.reads_text:
        reason = "reads the text behind an image, which may belong to the next sample"
    elif method.positions == "original" and not grid_positions:
        reason = 'leaves gaps in the positions (positions="original"), which look like the seams between samples'
    elif not bool(cut.real.all()):
        reason = "keeps a different number of columns in every row, so that some would have to be padded"
    if reason:
        raise FlowCutError(
            f"Several samples share a row (packed: position_ids begin again, no attention_mask), and {method.name} "
            f"{reason}. Give every sample a row of its own with an attention mask, or use a method that cuts in front "
            'of the language model without reading the text, with positions="compact".'
        )


def check_lengths(call: dict[str, Any]) -> None:
    """Refuse arguments that tell where samples begin in uncut columns.

    Raises:
        FlowCutError: names them.
    """
    given = [name for name in LENGTHS if call.get(name) is not None]
    if given:
        raise FlowCutError(
            f"{', '.join(given)} count uncut columns, which a cut shortens. Leave them out: position_ids that begin "
            "again tell the samples of a row apart as well."
        )
