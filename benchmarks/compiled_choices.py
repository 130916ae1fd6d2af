"""CPU time of a choice under torch.compile (``flowcut.compile_choices``) against the same choice run eagerly.

The choice alone is timed, on features drawn at random: 64 of 576 tokens of width 1024, as behind a CLIP tower. Every
round times both, in turns, behind a call that compiles and one that warms up. Times are CPU seconds of this program,
which other programs disturb least, but for the first compiled call, whose compiler is a program of its own: of that by
the clock. How often both kept the same is counted over pictures of their own.

    python benchmarks/compiled_choices.py --rounds 15
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flowcut import compile_choices
from flowcut.algorithm.coverage import largest_coverage
from flowcut.methods.cdpruner import largest_determinant
from flowcut.methods.saliency import unit
from flowcut.methods.scope import salient_cover
from flowcut.methods.vispruner import important_and_diverse

Choice = Callable[[Tensor, Tensor, int], Tensor]


def cdpruner(features: Tensor, quality: Tensor, target: int) -> Tensor:
    """CDPruner's choice, with ``quality`` for the relevance."""
    normed = unit(features[0])
    return largest_determinant(quality[0][:, None] * (normed @ normed.T) * quality[0], target)


CHOICES: dict[str, Choice] = {
    "scope": lambda features, quality, target: salient_cover(features, quality, (target,)),
    "cdpruner": cdpruner,
    "vispruner": lambda features, quality, target: important_and_diverse(
        quality[0], features[0], target, target // 2, 8
    ),
    "flowcut_plus": lambda features, quality, target: largest_coverage(features, quality, (target,), quality.ceil()),
}


def drawn(tokens: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features that have something in common, and what each token counts."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, tokens, width, generator=generator) + 0.7 * torch.randn(width, generator=generator)
    return features, torch.rand(1, tokens, generator=generator) + 0.01


def spread(seconds: list[float]) -> str:
    """The median in milliseconds, and the middle half."""
    low, middle, high = (1000 * some for some in statistics.quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main(
    tokens: Annotated[int, typer.Option(min=2)] = 576,
    target: Annotated[int, typer.Option(min=1)] = 64,
    width: Annotated[int, typer.Option(min=1)] = 1024,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 15,
    pictures: Annotated[int, typer.Option(min=1, help="Random pictures whose choices are compared.")] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print, for every method, CPU milliseconds of both, their ratio, the first call's seconds and what is the same."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    table = Table("method", "eager, ms", "compiled, ms", "of eager", "first call", "same choice")
    for name, choose in CHOICES.items():
        features, quality = drawn(tokens, width, 0)
        start = time.perf_counter()
        with compile_choices():
            choose(features, quality, target)
        first = time.perf_counter() - start
        same = 0
        for seed in range(pictures):
            plain = choose(*drawn(tokens, width, seed), target)
            with compile_choices():
                same += torch.equal(choose(*drawn(tokens, width, seed), target), plain)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for compiled, taken in seconds.items():
                with compile_choices(compiled):
                    start = time.process_time()
                    choose(features, quality, target)
                    taken.append(time.process_time() - start)
        eager, compiled_ones = seconds[False], seconds[True]
        ratio = statistics.median(one / other for one, other in zip(compiled_ones, eager, strict=True))
        table.add_row(
            name,
            *(spread(some) for some in seconds.values()),
            f"{ratio:.2f}",
            f"{first:.1f} s",
            f"{same} of {pictures}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
