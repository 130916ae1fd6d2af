"""Preference training with pictures: TRL's DPOTrainer with LoRA while FlowCut cuts.

    python examples/train_dpo.py runs/preferred
    python examples/train_dpo.py runs/preferred --model llava-hf/llava-1.5-7b-hf --target-num 192 --data mine.json

The reference is the attached model without its adapters, so it is cut like the policy and the first loss is ln 2. By
default it tunes flowcut-mini on the eight pictures of this folder: an example, not a useful model. Your own data is a
JSON list of entries with "image" (a path, from the file's folder), "question", "answer" and "rejected". Needs peft and
trl.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset, Image
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from flowcut import FlowCut, FlowCutCallback, attach
from flowcut.checkpoints.loading import load_model

DATA = Path(__file__).parent / "pictures" / "answers.json"
# Attention and MLP of the language model; the tower and the projector stay as they are.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def preferences(data: Path) -> Dataset:
    """Questions with a good and a bad answer as TRL takes them: messages, and the pictures beside them."""
    entries = json.loads(data.read_text())

    def said(entry: dict[str, str], name: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": entry[name]}]

    rows: dict[str, list[Any]] = {
        "images": [[str(data.parent / entry["image"])] for entry in entries],
        "prompt": [[{"role": "user", "content": entry["question"]}] for entry in entries],
        "chosen": [said(entry, "answer") for entry in entries],
        "rejected": [said(entry, "rejected") for entry in entries],
    }
    return Dataset.from_dict(rows).cast_column("images", [Image()])


def main(
    output: Annotated[Path, typer.Argument(help="Folder for the adapters.")],
    model: Annotated[str, typer.Option(help="flowcut-mini, a folder or a hub id.")] = "flowcut-mini",
    data: Annotated[Path, typer.Option(help="Questions with good and bad answers.")] = DATA,
    target_num: Annotated[int, typer.Option(help="Visual tokens kept of each picture.")] = 64,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Pairs in one micro-batch.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 5e-5,
) -> None:
    """Train and save."""
    loaded = load_model(model)
    method = FlowCut(target_num=target_num)
    attach(loaded.model, method)
    settings = DPOConfig(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        logging_steps=max(1, steps // 10),
        max_length=None,  # a limit would cut placeholders off
        use_cpu=loaded.device.type == "cpu",
        bf16=loaded.device.type != "cpu",
        report_to="none",
        save_strategy="no",
    )
    trainer = DPOTrainer(
        loaded.model,
        args=settings,
        train_dataset=preferences(data),
        processing_class=loaded.processor,
        callbacks=[FlowCutCallback(method, base=model)],  # the adapters remember the method
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS),
    )
    trainer.train()
    trainer.save_model(str(output))
    print(f"adapters in {output}: flowcut run PICTURE QUESTION --model {output}")


if __name__ == "__main__":
    typer.run(main)
