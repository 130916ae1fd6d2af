"""A model with tokens cut inside VLMEvalKit, whose own wrappers load one model each and know no method.

Run it where ``flowcut`` and VLMEvalKit (from its repository, not the package index) are installed; everything behind
``--`` goes to VLMEvalKit's ``run.py``:

    python examples/vlmevalkit.py VLMEvalKit/run.py --model llava-hf/llava-1.5-7b-hf --method flowcut --target-num 64 \\
        -- --data MMBench_DEV_EN POPE --work-dir runs/vlmevalkit

``torchrun --nproc-per-node 8`` in the place of ``python`` shares the questions among GPUs, as VLMEvalKit does it.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

from flowcut import attach
from flowcut.checkpoints.loading import load_model
from flowcut.inputs.pictures import load_image
from flowcut.inputs.prompting import many_inputs, text_inputs
from flowcut.methods import make_method
from flowcut.tasks.decoding import decoded


class CutModel(BaseModel):
    """A model of ours as VLMEvalKit asks it: one picture, one question, in the model's own prompt.

    Args:
        model: flowcut-mini, a folder or a hub id.
        method: an expression such as ``flowcut(history=0.7)``, or ``uncut``.
        target_num: its budget.
        max_new_tokens: longest answer.
        device, dtype: by name; ``None`` for the best one here.
    """

    INTERLEAVE = False
    allowed_types = ("text", "image")

    def __init__(
        self, model: str, method: str, target_num: int, max_new_tokens: int, device: str | None, dtype: str | None
    ) -> None:
        super().__init__()
        self.loaded = load_model(model, device, dtype)
        self.max_new_tokens = max_new_tokens
        self.handle = None if method == "uncut" else attach(self.loaded.model, make_method(method, target_num))

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The greedy answer; several pictures are not asked about, as not every family's prompt takes them."""
        pictures = [part["value"] for part in message if part["type"] == "image"]
        question = "\n".join(part["value"] for part in message if part["type"] == "text")
        if len(pictures) > 1:
            raise ValueError(f"{dataset} has questions about {len(pictures)} pictures; one is taken here.")
        processor = self.loaded.processor
        if pictures:
            inputs = many_inputs(processor, load_image(pictures[0]), [question])
            inputs = inputs.to(self.loaded.device, dtype=self.loaded.dtype)
        else:
            inputs = text_inputs(processor, [question]).to(self.loaded.device)
        model: Any = self.loaded.model
        output = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        return decoded(self.loaded, list(output[:, inputs["input_ids"].shape[1] :]))[0]


def main(
    program: Annotated[Path, typer.Argument(help="VLMEvalKit's run.py.")],
    more: Annotated[list[str], typer.Argument(help="Its arguments, behind --.")],
    model: str = "flowcut-mini",
    method: str = "flowcut",
    target_num: int = 64,
    max_new_tokens: int = 128,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Run VLMEvalKit with a model that cuts, under the name MODEL-METHOD-BUDGET."""
    if device is None and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    budget = "" if method == "uncut" else f"-{target_num}"
    name = f"{model.rstrip('/').rpartition('/')[2]}-{method}{budget}"

    def build(**_: Any) -> CutModel:
        return CutModel(model, method, target_num, max_new_tokens, device, dtype)

    supported_VLM[name] = build
    sys.argv = [str(program), "--model", name, *more]
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    typer.run(main)
