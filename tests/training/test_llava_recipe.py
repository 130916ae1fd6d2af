"""LLaVA's two stages as they ship: its prompts to the letter, its figures, and a run through both on tiny parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
import yaml
from transformers import CLIPImageProcessor, CLIPVisionModel, LlamaForCausalLM

import flowcut
from flowcut.checkpoints import load_llava
from flowcut.cli.export import FORMATS
from flowcut.training.conversation import IGNORED, Conversations
from flowcut.training.reading import read_config
from flowcut.training.run import train
from flowcut.training.samples import Sample, Turn

pytest.importorskip("peft", reason="PEFT is one of the development extras")
ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "train"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


TURNS = (
    Turn("user", ({"type": "image"}, text("word1 ?"))),
    Turn("assistant", (text("word2"),)),
    Turn("user", (text("word3"),)),
    Turn("assistant", (text("word4"),)),
)


def writer(template: str) -> Conversations:
    return Conversations(tiny_checkpoint.tiny_processor(), (RECIPES / template).read_text())


def test_the_templates_write_what_llavas_scripts_write() -> None:
    assert writer("llava_plain.jinja").write(TURNS[:2]) == "<image>word2\n"
    expected = f"{SYSTEM} USER: <image>\nword1 ? ASSISTANT: word2</s>USER: word3 ASSISTANT: word4</s>"
    assert writer("llava_v1.jinja").write(TURNS) == expected


def test_the_figures_are_llavas() -> None:
    stages = [read_config(RECIPES / f"llava15_{name}.yaml") for name in ("pretrain", "finetune")]
    told = [
        (one.optimize.rate, one.optimize.batch, one.optimize.epochs, one.optimize.warmup, one.optimize.decay)
        for one in stages
    ]
    assert told == [(1e-3, 32, 1.0, 0.03, 0.0), (2e-5, 16, 1.0, 0.03, 0.0)]
    assert [(one.tune.language, one.tune.projector, one.tune.tower) for one in stages] == [
        ("frozen", True, "frozen"),
        ("full", True, "frozen"),
    ]
    assert stages[1].model == stages[0].output and [one.data.squares for one in stages] == ["cut", "pad"]


def test_both_stages_run_on_tiny_parts_and_end_in_llavas_format(tmp_path: Path) -> None:
    model = tiny.tiny_model()
    language: Any = LlamaForCausalLM(model.config.text_config)
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.save_pretrained(tmp_path / "language")
    tiny_checkpoint.tiny_tokenizer({"<other>": tiny.IMAGE_TOKEN}).save_pretrained(tmp_path / "language")
    tower: Any = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.model.vision_tower.state_dict())
    tower.save_pretrained(tmp_path / "tower")
    crop = {"height": tiny_checkpoint.SIZE, "width": tiny_checkpoint.SIZE}
    CLIPImageProcessor(size={"shortest_edge": tiny_checkpoint.SIZE}, crop_size=crop).save_pretrained(tmp_path / "tower")
    tiny_checkpoint.save_picture(tmp_path / "a.png", 130, 90)
    turns = [("<image>\nword1", "word2"), ("word3", "word4")]
    rows = [
        {
            "image": "a.png",
            "conversations": [
                {"from": side, "value": one} for turn in turns for side, one in zip(("human", "gpt"), turn, strict=True)
            ],
        }
    ] * 4
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def stage(name: str, **changes: Any) -> Any:
        told = yaml.safe_load((RECIPES / f"llava15_{name}.yaml").read_text())
        told |= {"output": str(tmp_path / name), "method": "flowcut(target_num=9)", **changes}
        told["data"] |= {"train": str(tmp_path / "rows.json"), "pictures": str(tmp_path)}
        told["data"]["chat_template"] = str(ROOT / told["data"]["chat_template"])
        told["optimize"] |= {"batch": 2, "workers": 0, "rate": 1e-2}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(told))
        train(read_config(tmp_path / f"{name}.yaml"), cpu=True)
        return flowcut.load(tmp_path / name, device="cpu")

    before = language.model.state_dict()
    first = stage("pretrain", parts={"language": str(tmp_path / "language"), "tower": str(tmp_path / "tower")})
    for name, weight in model.model.vision_tower.state_dict().items():
        assert torch.equal(first.model.vision_tower.state_dict()[name], weight.bfloat16().float()), name
    for name, weight in before.items():
        found = first.model.language_model.state_dict()[name]
        assert torch.equal(found[: len(weight)], weight.bfloat16().float()), name
    assert first.model.multi_modal_projector.linear_1.weight.dtype == torch.float32
    table = first.get_input_embeddings().weight
    assert first.config.image_token_id == 128
    assert torch.allclose(table[128], table[:128].mean(dim=0), atol=1e-2)
    second = stage("finetune", model=str(tmp_path / "pretrain"))
    moved = [not torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True)]
    named = [name for (name, _), changed in zip(second.named_parameters(), moved, strict=True) if changed]
    assert any("projector" in name for name in named) and any("language_model" in name for name in named)
    assert not any("vision_tower" in name for name in named)

    from typer.testing import CliRunner

    from flowcut.cli import app

    target = tmp_path / "llava"
    options = ["--format", FORMATS[1], "--vision-tower", str(tmp_path / "tower")]
    done = CliRunner().invoke(app, ["export", str(tmp_path / "finetune"), str(target), *options])
    assert done.exit_code == 0, done.output
    assert json.loads((target / "config.json").read_text())["image_aspect_ratio"] == "pad"
    again, _ = load_llava(target)
    for name, weight in second.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_plain_captions_learn_the_caption_and_its_end(tmp_path: Path) -> None:
    from flowcut.training.pictures import BlankStore

    row = writer("llava_plain.jinja").encode(Sample("one", TURNS[:2], ("a",), (), BlankStore()), 1)
    learned = row["labels"][0][row["labels"][0] != IGNORED]
    assert learned.tolist() == tiny_checkpoint.tiny_tokenizer()("word2", add_special_tokens=False)["input_ids"]
