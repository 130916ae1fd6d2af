"""How much of the text on a rendered page is still there behind a cut in flowcut-mini's tower.

Every page has lines of random words on white, in the upper part of it alone. A patch with ink is one whose darkest and
lightest value differ. What is cut of it is gone: the tower's other patches were not trained to repeat it.

    python benchmarks/pages.py --pages 12
"""

from __future__ import annotations

import random
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from flowcut import attach, make_method
from flowcut.checkpoints import load_mini
from flowcut.inputs.prompting import many_inputs

SIDE, PATCH, LINE = 336, 14, 21
LETTERS = "abcdefghijklmnoprstuw"


def page(seed: int) -> tuple[Image.Image, set[int]]:
    """A page, and the numbers of its patches with ink."""
    chance = random.Random(seed)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for line in range(chance.randint(4, 12)):
        words = ["".join(chance.choices(LETTERS, k=chance.randint(2, 9))) for _ in range(9)]
        drawing.text((LINE, LINE * (line + 1)), " ".join(words)[:44], fill="black", font=font)
    values = np.asarray(picture.convert("L")).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    inked = values.max(axis=(1, 3)).astype(int) - values.min(axis=(1, 3)) > 64
    return picture, set(np.flatnonzero(inked).tolist())


@torch.inference_mode()
def main(
    pages: Annotated[int, typer.Option(help="rendered pages")] = 12,
    methods: Annotated[str, typer.Option(help="names separated by commas")] = "flowcut,uniform",
    budgets: Annotated[str, typer.Option(help="visual tokens of 576, separated by commas")] = "192,64",
) -> None:
    """Print the share of inked patches that stay, with the standard error over pages, and what could stay at most."""
    torch.set_num_threads(1)
    model, processor = load_mini()
    drawn = [page(seed) for seed in range(pages)]
    table = Table(
        "tokens", "at most", *methods.split(","), title=f"{np.mean([len(ink) for _, ink in drawn]):.0f} of 576 with ink"
    )
    for budget in map(int, budgets.split(",")):
        cells = [f"{np.mean([min(1, budget / len(ink)) for _, ink in drawn]):.0%}"]
        for name in methods.split(","):
            shares = []
            with attach(model, make_method(name, budget)) as handle:
                for picture, ink in drawn:
                    model(**many_inputs(processor, picture, ["What is written?"]), logits_to_keep=1)
                    shares.append(len(ink & set(handle.trace.images[0].kept.tolist())) / len(ink))
            cells.append(f"{np.mean(shares):.0%} ± {np.std(shares, ddof=1) / len(shares) ** 0.5:.1%}")
        table.add_row(str(budget), *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
