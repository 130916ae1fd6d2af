"""The published tables: what stands in ``published/*.csv``, and what each was measured with.

A row has a name, the method here that does the same (none, where there is none), its budget (visual tokens, or a share)
and the published figures. Every figure is quoted from the paper; what the paper does not give is left out.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from flowcut import Method
from flowcut.methods import make_method

FOLDER = Path(__file__).parent / "published"
UNCUT = "uncut"
LLAVA = ("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b")
NEXT = ("llava-hf/llava-v1.6-vicuna-7b-hf", "liuhaotian/llava-v1.6-vicuna-7b")
QWEN = ("Qwen/Qwen2-VL-7B-Instruct",)
VIDEO = ("LanguageBind/Video-LLaVA-7B-hf",)


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        name: unique in its table.
        method: an expression for :func:`flowcut.methods.make_method`, ``uncut``, or empty where nothing here does it.
        budget: visual tokens of an image, or a share such as ``1/9``; empty for ``uncut``.
        figures: the published ones, by column.
    """

    name: str
    method: str
    budget: str
    figures: dict[str, float]

    def build(self, flowcut: str = "flowcut") -> Method | None:
        """The method; ``None`` for the model as it is.

        Args:
            flowcut: what stands for FlowCut with its defaults.
        """
        if self.method == UNCUT:
            return None
        expression = flowcut if self.method == "flowcut" else self.method
        if "/" in self.budget:
            return make_method(expression, retain_ratio=float(Fraction(self.budget)))
        return make_method(expression, target_num=int(self.budget))


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper.

    Attributes:
        title: what it shows.
        models: the hub ids of the checkpoint that it was measured with.
        columns: its figures.
        rows: in its order.
    """

    title: str
    models: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def was_measured_with(self, model: str) -> bool:
        """Whether a model (a hub id or a folder of that name) is the table's."""
        return model.rstrip("/").rpartition("/")[2] in {one.rpartition("/")[2] for one in self.models}


TITLES = {
    "1": ("LLaVA-1.5-7B at 192, 128 and 64 of 576 visual tokens", LLAVA),
    "2": ("LLaVA-NeXT-7B at 640, 320 and 160 of 2880 visual tokens", NEXT),
    "3": ("Qwen2-VL-7B with two thirds, seven ninths and eight ninths of the visual tokens cut", QWEN),
    "4": ("Video-LLaVA-7B at 256 of 2048 visual tokens", VIDEO),
    "5": ("Efficiency: LLaVA-1.5-7B at 64 of 576, POPE on one A800", LLAVA),
    "5-next": ("Efficiency: LLaVA-NeXT-7B at 160 of 2880, POPE on one A800", NEXT),
    "7": ("Ablation at 128 tokens: adaptive number (A), cumulative importance (C), multiple criteria (M)", LLAVA),
    "8": ("LLaVA-1.5-7B at 32 of 576 visual tokens", LLAVA),
    "9": ("LLaVA-1.5-7B at about 1.95 TFLOPs", LLAVA),
    "9-st3": ("LLaVA-1.5-7B at about 4.25 TFLOPs, next to ST3", LLAVA),
    "10": ("Ablation at 128 tokens: the weight of history against that of the current layer", LLAVA),
    "11": ("Ablation at 128 tokens: a cut every so many layers", LLAVA),
}
"""Every table that has a command, by the name of its command."""


def read_table(name: str) -> PublishedTable:
    """A published table.

    Raises:
        ValueError: there is no such table; the message names those there are.
    """
    if name not in TITLES:
        raise ValueError(f"There is no table {name!r}; there are: {', '.join(TITLES)}.")
    title, models = TITLES[name]
    with (FOLDER / f"table-{name}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns = tuple(lines[0])[3:]
    rows = tuple(
        Row(
            line["row"],
            line["method"],
            line["budget"],
            {column: float(line[column]) for column in columns if line[column]},
        )
        for line in lines
    )
    return PublishedTable(title, models, columns, rows)
