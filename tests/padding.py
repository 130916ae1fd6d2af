"""Batches in which every row has its padding somewhere else: in front, behind, on both sides, in the middle."""

from __future__ import annotations

from torch import Tensor

TAIL = 2
"""Tokens behind the padding in the middle of a row."""

LAYOUTS = ("left", "right", "both", "middle")


def spread(inputs: dict[str, Tensor], layout: str, spare: int = 3) -> dict[str, Tensor]:
    """A batch with its padding moved; the longest row gets ``spare`` columns of it, too.

    Args:
        inputs: padded on either side; every tensor of the form of ``input_ids`` is moved, the others stay.
        layout: ``"left"``, ``"right"``, ``"both"`` (prompts padded on the left, answers on the right), or ``"middle"``
            (the same with padding in front of the last tokens of every row as well).
    """
    mask = inputs["attention_mask"].bool()
    width = int(mask.sum(dim=1).max()) + spare
    spread = {name: value for name, value in inputs.items() if value.shape != mask.shape}
    for name in inputs.keys() - spread.keys():
        spread[name] = inputs[name].new_zeros(len(mask), width)
    for row, attended in enumerate(mask):
        before, middle = shares(width - int(attended.sum()), layout, row)
        for name, value in inputs.items():
            if value.shape != mask.shape:
                continue
            tokens = value[row, attended]
            spread[name][row, before : before + len(tokens) - TAIL] = tokens[:-TAIL]
            tail = before + len(tokens) - TAIL + middle
            spread[name][row, tail : tail + TAIL] = tokens[-TAIL:]
    return spread


def shares(padding: int, layout: str, row: int) -> tuple[int, int]:
    """How much of a row's padding stands in front of it, and in front of its tail."""
    if layout == "left":
        return padding, 0
    if layout == "right":
        return 0, 0
    if layout == "both":
        return (padding + row) // 2, 0
    return padding // 3, padding - 2 * (padding // 3)
