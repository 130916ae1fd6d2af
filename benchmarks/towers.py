"""How much of what FlowCut promises arrives in the vision towers of several families, as CPU time.

Towers have the widths of real checkpoints, random weights and fewer layers; one ninth of the visual tokens stays. Every
round times the uncut tower and the cut one, behind passes to warm up. Times are CPU seconds of this program, which
other programs disturb least. What arrives is the time saved over the FLOPs saved, each as a share of uncut, by the
median of the rounds' ratios.

    python benchmarks/towers.py --families video_llava,qwen2_vl,qwen2_5_vl,qwen3_vl
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from flowcut import FlowCut, attach
from flowcut.measure.real_sizes import SUBJECTS, Subject, build, prompt

SMALL = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}


def shallow(subject: Subject, depth: int) -> Subject:
    """A subject with so many vision layers, in front of a language model that costs nothing."""
    config = copy.deepcopy(subject.config)
    vision: dict[str, Any] = config["vision_config"]
    if "depth" not in vision:
        vision["num_hidden_layers"] = depth
    else:
        vision["depth"] = depth
        vision["out_hidden_size" if "out_hidden_size" in vision else "hidden_size"] = SMALL["hidden_size"]
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if name in vision:
            vision[name] = [layer for layer in vision[name] if layer < depth]
    return replace(subject, config=config, text={**subject.text, **SMALL})


def encode(model: Any, pixels: dict[str, Any]) -> float:
    """CPU seconds of the tower and the projector."""
    start = time.process_time()
    if "pixel_values_videos" in pixels:
        model.model.get_video_features(**pixels)
    else:
        model.model.get_image_features(**pixels)
    return time.process_time() - start


@torch.inference_mode()
def measured(subject: Subject, depth: int, rounds: int, adaptive: bool) -> tuple[list[float], list[float], float]:
    """CPU seconds uncut and cut, round by round, and the tower's FLOPs cut, of uncut."""
    model = build(shallow(subject, depth), 3, "sdpa", 0.06, "cpu", torch.float32)
    inputs = prompt(subject, 20)
    pixels = {name: value for name, value in inputs.items() if name.startswith(("pixel", "image_"))}
    method = FlowCut(target_num=subject.visual_tokens // 9, adaptive=adaptive)
    encode(model, pixels)
    with attach(model, method) as handle:
        model(**inputs, logits_to_keep=1)
        sequence = handle.trace.sequence
        assert sequence is not None
        flops = sequence.flops[0].tower / sequence.uncut_flops[0].tower
    uncut, cut = [], []
    for _ in range(rounds):
        uncut.append(encode(model, pixels))
        with attach(model, method):
            cut.append(encode(model, pixels))
    return uncut, cut, flops


def main(
    families: Annotated[str, typer.Option(help=f"Of {', '.join(SUBJECTS)}.")] = "video_llava,qwen2_5_vl",
    depth: Annotated[int, typer.Option(min=4, help="Vision layers.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    adaptive: Annotated[bool, typer.Option(help="The adaptive schedule, or equal shares at every cut.")] = True,
) -> None:
    """Time the towers."""
    torch.set_num_threads(threads)
    table = Table("family", "uncut, s", "time", "fastest and slowest", "FLOPs", "arrives")
    for name in families.split(","):
        uncut, cut, flops = measured(SUBJECTS[name], depth, rounds, adaptive)
        ratios = [one / other for one, other in zip(cut, uncut, strict=True)]
        ratio = statistics.median(ratios)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        arrives = f"{100 * (1 - ratio) / (1 - flops):.0f}%"
        table.add_row(name, f"{statistics.median(uncut):.2f}", f"{ratio:.3f}", spread, f"{flops:.3f}", arrives)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
