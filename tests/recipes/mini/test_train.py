"""Training resumes where it stopped, and what it writes can be exported."""

from __future__ import annotations

import csv
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Dinov2Model, LlavaForConditionalGeneration

from flowcut.tasks import TASKS
from recipes.mini import curves, export
from recipes.mini.adapt import adapt
from recipes.mini.align import align, aligned_folder
from recipes.mini.evaluate import drop_oracle, evaluate, keep_all, keep_random, summary
from recipes.mini.features import (
    SHARD,
    build_shard,
    encode_split,
    halve,
    read_shard,
    shards,
    stem_of,
)
from recipes.mini.pack import pack
from recipes.mini.render import render
from recipes.mini.student import Student
from recipes.mini.testset import choose
from recipes.mini.tower import FILE
from recipes.mini.train import Stage, train
from recipes.mini.workers import run


@pytest.fixture(scope="module")
def prepared(workspace, material):
    """The workspace with one shard of features for each split, an aligned projector and an adapted tower."""
    tower = Dinov2Model.from_pretrained(workspace.tower).eval()
    for split in ("train", "test"):
        build_shard(workspace, material, tower, split, 0)
    align(workspace, steps=3, batch=64)
    adapt(workspace, scenes=16)
    return workspace


def test_shards_hold_the_tower_s_view_of_their_scenes(prepared, material) -> None:
    assert shards(prepared, "train") == [0]
    pictures = list(read_shard(prepared, "train", 0))
    assert len(pictures) == SHARD
    drawn, scene = render(material, "train", 9)
    assert pictures[9].scene.items == scene.items
    tower = Dinov2Model.from_pretrained(prepared.tower).eval()
    torch.testing.assert_close(pictures[9].stem, stem_of(tower, [drawn])[0], rtol=1e-2, atol=1e-2)


def test_halving_averages_neighbours() -> None:
    features = torch.arange(576.0).reshape(576, 1)
    assert halve(features)[0].item() == (0 + 1 + 24 + 25) / 4
    assert halve(features).shape == (144, 1)


def test_alignment_leaves_a_projector_and_a_curve(prepared) -> None:
    assert set(load_file(aligned_folder(prepared) / "projector.safetensors")) == {
        "linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias",
    }  # fmt: skip
    with (prepared.training / "alignment.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "2"]


def test_adapting_changes_the_tower_and_goes_on_where_it_stopped(prepared) -> None:
    folder = prepared.training / "adapted"
    adapters = load_file(folder / "tower_adapters.safetensors")
    assert any(value.any() for name, value in adapters.items() if "lora_B" in name)
    before = (folder / "log.csv").read_text()
    adapt(prepared, scenes=16)
    assert (folder / "log.csv").read_text() == before
    for name, value in load_file(folder / "tower_adapters.safetensors").items():
        assert torch.equal(value, adapters[name])


@pytest.mark.parametrize("halved", [True, False])
def test_an_interrupted_stage_ends_like_an_uninterrupted_one(prepared, halved: bool) -> None:
    whole = Stage(f"whole-{halved}", scenes=4, halved=halved, accumulate=2)
    expected = load_file(train(prepared, whole, start_from=None) / "adapters.safetensors")
    parts = Stage(f"parts-{halved}", scenes=4, halved=halved, accumulate=2)

    class Interrupted(Exception):
        pass

    original = torch.save
    calls = []

    def save_and_stop(*args, **kwargs):
        original(*args, **kwargs)
        calls.append(1)

    def stop_after_first_save(*args, **kwargs):
        save_and_stop(*args, **kwargs)
        (prepared.training / parts.name / "resume.partial").rename(prepared.training / parts.name / "resume.pt")
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", stop_after_first_save)
        with pytest.raises(Interrupted):
            train(prepared, parts, start_from=None, save_every=2)
    resumed = load_file(train(prepared, parts, start_from=None) / "adapters.safetensors")
    assert calls == [1]
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_two_workers_share_a_stage(prepared) -> None:
    stage = Stage("shared", scenes=4, halved=True, accumulate=1)
    folder = run(partial(train, prepared, stage, start_from=None), 2, prepared.training / "shared", 4)
    assert torch.load(folder / "resume.pt", weights_only=True)["done"] == 4
    trained = load_file(folder / "adapters.safetensors")
    assert any(value.any() for name, value in trained.items() if "lora_B" in name)


def test_two_workers_adapt_the_tower(prepared) -> None:
    folder = prepared.training / "together"
    assert run(partial(adapt, prepared, scenes=12, name="together"), 2, folder, 12) == folder
    assert torch.load(folder / "resume.pt", weights_only=True)["done"] == 16  # whole updates
    assert any(value.any() for name, value in load_file(folder / FILE).items() if "lora_B" in name)
    with pytest.raises(ValueError, match="evenly"):
        adapt(prepared, scenes=8, name="uneven", workers=3)


def test_evaluation_counts_every_question_and_repeats(prepared, material) -> None:
    student = Student(prepared)
    chosen = choose(material, share=0.01)[:3]
    tower = Dinov2Model.from_pretrained(prepared.tower).eval()
    scenes = [(stem_of(tower, [entry.picture])[0], entry.scene.touched, entry.questions) for entry in chosen]
    first = evaluate(student, scenes, keep_random(64))
    assert first == evaluate(student, scenes, keep_random(64))
    for choice in (keep_all, drop_oracle):
        results = evaluate(student, scenes, choice)
        assert sum(map(len, results.values())) == sum(len(entry.questions) for entry in chosen)
        assert {row[0] for row in summary(results)} <= set(TASKS)


def test_a_packed_split_is_encoded_once(prepared, material, tmp_path) -> None:
    packed = pack("tiny", choose(material, share=0.01)[:2], tmp_path / "tiny.zip")
    first = list(encode_split(prepared, "tiny", packed.scenes))
    stored = sorted((prepared.scenes / "tiny").iterdir())
    assert [path.name for path in stored] == sorted(f"{scene.name}.npy" for scene in packed.scenes)
    times = [path.stat().st_mtime_ns for path in stored]
    for (features, masks, questions), again in zip(first, encode_split(prepared, "tiny", packed.scenes), strict=True):
        assert features.shape == (577, 384)
        assert torch.equal(features, again[0])
        assert masks.shape[1:] == (24, 24)
        assert questions
    assert [path.stat().st_mtime_ns for path in stored] == times


def test_the_export_answers_like_the_student(prepared, material, tmp_path) -> None:
    torch.manual_seed(1)
    student = Student(prepared).eval()
    for weight in (*student.adapters(), *student.upper.adapters()):
        torch.nn.init.normal_(weight, std=0.05)
    student.save(tmp_path / "trained")
    export.export(prepared, tmp_path / "trained", tmp_path / "model", torch.float32)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    picture, _ = render(material, "test", 0)
    entry = choose(material, share=0.01)[0]
    question = entry.questions[0]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == 576
    tower = Dinov2Model.from_pretrained(prepared.tower).eval()
    projected = student.projector(student.see(stem_of(tower, [picture])[0]))
    packed = student.packer.pack([question], torch.arange(576))
    with torch.inference_mode():
        ours, _ = student.logits(packed, projected)
        theirs = model(**inputs).logits[0, -1]
    torch.testing.assert_close(ours[0].float(), theirs, rtol=0.1, atol=0.1)
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] > inputs.input_ids.shape[1]


def test_curves_are_drawn(prepared, tmp_path) -> None:
    log = tmp_path / "log.csv"
    header = ",".join(["dialogues", "seconds", "loss", *TASKS])
    log.write_text(header + "\n40,1,2.0" + ",0.5" * len(TASKS) + "\n80,2,1.0" + ",nan" * len(TASKS) + "\n")
    curves.draw([log, log], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
