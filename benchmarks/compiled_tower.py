"""CPU time of a vision tower under torch.compile (inductor) against the same tower run eagerly: uncut, and FlowCut's
with a fixed schedule, which is one graph.

The tower is CLIP's at a chosen depth and width, with random weights; what compiling saves depends on neither. Every
round times all four once, in an order that rotates, behind the rounds that compile. Times are CPU seconds of this
program, which other programs disturb least; the figures are medians over the rounds, of the seconds and of each round's
ratio to the eager tower.

    python benchmarks/compiled_tower.py --rounds 9
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut import FlowCut, attach


def small_llava(layers: int, width: int) -> Any:
    """A LLaVA with a tower of real size or smaller, and next to no language model."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=layers,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(hidden_size=64, intermediate_size=64, num_attention_heads=1, num_hidden_layers=1, vocab_size=64)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=63)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def equal_shares(layers: int, target: int) -> tuple[int, ...]:
    """A schedule that takes equally many of 576 patches at every cut."""
    cuts = (layers - 1) // 2
    share, rest = divmod(576 - target, cuts)
    return tuple(share + (cut < rest) for cut in range(cuts))


@torch.inference_mode()
def seconds(tower: Callable[..., Any], pixels: torch.Tensor) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    tower(pixels)
    return time.process_time() - start


def main(
    layers: Annotated[int, typer.Option(min=4, help="Of the tower.")] = 24,
    width: Annotated[int, typer.Option(min=64, help="Of the tower, a multiple of 64.")] = 1024,
    target_num: Annotated[int, typer.Option(min=1, help="Patches that stay of 576.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Time the four."""
    torch.set_num_threads(threads)
    model = small_llava(layers, width)
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    towers: dict[str, Any] = {}
    for name, method in (
        ("uncut", None),
        ("flowcut", FlowCut(target_num=target_num, schedule=equal_shares(layers, target_num))),
    ):
        for how in ("eager", "compiled"):
            own = copy.deepcopy(model)
            if method is not None:
                attach(own, method)
            towers[f"{name}, {how}"] = own.model.vision_tower
            if how == "compiled":
                own.model.vision_tower.compile(fullgraph=True)
    compiling = {name: seconds(tower, pixels) for name, tower in towers.items()}
    times: dict[str, list[float]] = {name: [] for name in towers}
    names = list(towers)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(seconds(towers[name], pixels))
    table = Table("tower", "first call, s", "median, ms", "of eager", "fastest and slowest")
    for name in names:
        eager = times[f"{name.partition(',')[0]}, eager"]
        ratios = [one / other for one, other in zip(times[name], eager, strict=True)]
        table.add_row(
            name,
            f"{compiling[name]:.1f}",
            f"{1000 * statistics.median(times[name]):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{1000 * min(times[name]):.1f} to {1000 * max(times[name]):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
