"""CPU time of methods on flowcut-mini: vision tower with projector, and a whole prefill.

Every round times every method once, in an order that rotates, behind one round to warm up. Times are CPU seconds of
this program, which other programs disturb least; the figures are medians over the rounds, of the seconds and of each
round's ratio to the first method.

    python benchmarks/methods.py --rounds 9
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from flowcut import attach, make_method
from flowcut.checkpoints import load_mini
from flowcut.inputs.prompting import many_inputs
from flowcut.methods import METHODS
from flowcut.methods.naming import read_expressions

PICTURE = Path(__file__).parents[1] / "examples" / "pictures" / "coffee.jpg"
PARTS = ("tower and projector", "whole prefill")


@torch.inference_mode()
def timed(model: Any, inputs: Any, method: str, budget: int) -> tuple[float, float]:
    """CPU seconds of the two parts."""
    with attach(model, make_method(method, budget)):
        start = time.process_time()
        model.get_image_features(pixel_values=inputs["pixel_values"])
        tower = time.process_time() - start
        start = time.process_time()
        model(**inputs, logits_to_keep=1)
        return tower, time.process_time() - start


def main(
    methods: Annotated[
        str, typer.Option(help="names separated by commas, settings in brackets; the first is compared with")
    ] = "flowcut,flowcut_plus,flowcut_plus(relevance=text)",
    budgets: Annotated[str, typer.Option(help="visual tokens, separated by commas")] = "192,64,16",
    rounds: Annotated[int, typer.Option(help="timed rounds after one warm-up")] = 9,
) -> None:
    """Time methods in turns."""
    torch.set_num_threads(1)
    model, processor = load_mini()
    inputs = many_inputs(processor, Image.open(PICTURE).convert("RGB"), ["What is in the picture?"])
    names = [str(expression) for expression in read_expressions(methods, METHODS)]
    table = Table("tokens", "part", *names)
    for budget in map(int, budgets.split(",")):
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for place in range(len(names)):
                name = names[(number + place) % len(names)]
                seconds[name].append(timed(model, inputs, name, budget))
        for part, title in enumerate(PARTS):
            base = [one[part] for one in seconds[names[0]][1:]]
            cells = []
            for name in names:
                own = [one[part] for one in seconds[name][1:]]
                ratio = statistics.median(mine / first for mine, first in zip(own, base, strict=True))
                cells.append(f"{1000 * statistics.median(own):.0f} ms, {ratio:.2f}")
            table.add_row(str(budget), title, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
