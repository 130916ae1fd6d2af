"""Samples in LLaVA's format on their way to a batch: what is learned, what is bad, in what order they come."""

from __future__ import annotations

import io
import json
import runpy
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import tiny_qwen
import tiny_video
import torch
from PIL import Image

from flowcut import FlowCut, attach
from flowcut.training.collating import BAD, Collator, blank_row, joined
from flowcut.training.conversation import IGNORED, Conversations
from flowcut.training.dataset import SampleSet
from flowcut.training.samples import BadSamples, read_samples
from flowcut.training.sampling import LengthSampler

QWEN_TURNS = (
    "{% for message in messages %}{{ message['role'] | upper }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{{ '</s>\n' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


def said(*texts: str, image: Any = None, name: str = "one") -> dict[str, Any]:
    """An entry: questions and answers in turns."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": name, "conversations": turns, **({} if image is None else {"image": image})}


GOOD = [
    said("<image>\nword1 word2", "word3 word4", image="a.png", name="plain"),
    said("<image>\nword1", "word3", "word5 word6", "word7 word8 word9", image="b.png", name="turns"),
    said("word1", "word2 word3", name="text"),
    said("<image>\n<image>\nword1", "word4", "word6 <image>", "word5", image=["a.png", "b.png", "a.png"], name="many"),
]
ANSWERS = [["word3 word4"], ["word3", "word7 word8 word9"], ["word2 word3"], ["word4", "word5"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures and ``good.json``."""
    tiny_checkpoint.save_picture(tmp_path / "a.png")
    tiny_checkpoint.save_picture(tmp_path / "b.png", 60, 140)
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    return tmp_path


def samples_of(folder: Path, *rows: Any, stop: bool = False) -> tuple[list[Any], BadSamples]:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    bad = BadSamples(stop)
    return read_samples([str(folder / "rows.jsonl")], None, bad), bad


def writer(family: str = "llava") -> Conversations:
    if family == "llava":
        return Conversations(tiny_checkpoint.tiny_processor())
    return Conversations(tiny_video.tiny_processor(family), QWEN_TURNS)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_the_answers_and_their_end_are_learned_and_nothing_else(family: str, folder: Path) -> None:
    made = writer(family)
    tokenizer = made.tokenizer
    for sample, answers in zip(read_samples([str(folder / "good.json")], None, BadSamples(True)), ANSWERS, strict=True):
        row = made.encode(sample, 2)
        ids, labels = row["input_ids"][0], row["labels"][0]
        assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
        wanted = [token for text in answers for token in tokenizer(text, add_special_tokens=False)["input_ids"] + [2]]
        assert labels[labels != IGNORED].tolist() == wanted
        pictures = len(sample.pictures)
        assert ("pixel_values" in row) == bool(pictures)
        if family == "llava" and pictures:
            assert int((ids == tiny.IMAGE_TOKEN).sum()) == pictures * tiny.PATCHES == pictures * 36


def test_a_template_that_rewrites_earlier_turns_is_told(folder: Path) -> None:
    sample = read_samples([str(folder / "good.json")], None, BadSamples(True))[1]
    template = "{{ messages | length }} {% for message in messages %}<image>{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        Conversations(tiny_checkpoint.tiny_processor(), template).render(sample)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x"}, "no conversations"),
        (said("<image>\nword1", image="a.png"), "no answer at its end"),
        (said("<image>\nword1", " ", image="a.png"), "no answer: it is empty"),
        (said("word1", "word2", "word3"), "no answer at its end"),
        ({"conversations": [{"from": "gpt", "value": "word1"}]}, "do not alternate"),
        ({"conversations": [{"from": "someone", "value": "word1"}]}, "without a known role"),
        (said("word1", "word2", image="a.png"), "0 <image> in the text, 1 images named"),
        (said("<image>\nword1", "word2"), "1 <image> in the text, 0 images named"),
        (said("word1", "<image> word2", image="a.png"), "a picture outside the questions"),
        (said("<image>\nword1", "word2", image="gone.png"), "a missing picture: gone.png"),
        (said("<image>\nword1", "word2", image="../a.png"), "a picture that lies elsewhere: '../a.png' leads out"),
        (said("<image>\nword1", "word2", image="/etc/a.png"), "a picture that lies elsewhere"),
    ],
)
def test_bad_samples_are_named_with_their_reason_and_counted(row: Any, reason: str, folder: Path) -> None:
    samples, bad = samples_of(folder, GOOD[0], row, GOOD[2])
    assert len(samples) == 2 and len(bad) == 1
    assert reason in next(iter(bad.named.values())) and "1 with" in str(bad)
    with pytest.raises(ValueError, match=r"Sample .* of .*rows\.jsonl: "):
        samples_of(folder, GOOD[0], row, stop=True)


def test_too_long_samples_and_broken_pictures_are_bad(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "noise.png").write_bytes(b"no picture at all")
    long = said("<image>\n" + "word1 " * 90, "word2", image="a.png", name="long")
    broken = said("<image>\nword1", "word2", image="broken.png", name="broken")
    noise = said("<image>\nword1", "word2", image="noise.png", name="noise")
    samples, bad = samples_of(folder, long, broken, GOOD[0], noise, GOOD[2])
    found = SampleSet(samples, writer(), FlowCut(target_num=9), bad, max_length=60)
    # The header of the broken one is whole: that it is broken shows only when it is read.
    assert [sample.name.split()[0] for sample in found.samples] == ["broken", "plain", "text"]
    assert "too many tokens" in str(bad) and "broken picture" in str(bad) and len(bad) == 2
    taken = found[0]
    assert torch.equal(taken["input_ids"], found[1]["input_ids"]) and len(bad) == 3
    # A process of its own may have read it, so the batch tells the trainer what was bad.
    batch = Collator(found.writer.processor)([taken, found[1]])
    assert list(batch[BAD]) == ["broken of " + str(folder / "rows.jsonl")] and BAD not in Collator(
        found.writer.processor
    )([found[1]])
    with pytest.raises(ValueError, match=r"no sample to train on\. All 1 are bad: 1 with too many tokens"):
        samples, bad = samples_of(folder, long)
        SampleSet(samples, writer(), None, bad, max_length=60)


def test_lengths_count_kept_tokens(folder: Path) -> None:
    samples = read_samples([str(folder / "good.json")], None, BadSamples(True))
    uncut = SampleSet(samples, writer(), None, BadSamples(True))
    cut = SampleSet(samples, writer(), FlowCut(target_num=9), BadSamples(True))
    assert uncut.lengths == [row["input_ids"].shape[1] for row in (uncut[number] for number in range(4))]
    pictures = [len(sample.pictures) for sample in samples]
    assert cut.lengths == [
        length - count * (tiny.PATCHES - 9) for length, count in zip(uncut.lengths, pictures, strict=True)
    ]


def test_shards_in_webdatasets_format_give_the_same_samples(folder: Path) -> None:
    for number in range(2):
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for row in GOOD[number::2]:
                told = {key: value for key, value in row.items() if key != "id"}
                names = row.get("image", [])
                if isinstance(names, str):
                    del told["image"]  # the picture beside the JSON belongs to it
                    add(archive, f"{row['id']}.png", (folder / names).read_bytes())
                for name in names if isinstance(names, list) else []:
                    add(archive, name, (folder / name).read_bytes())
                add(archive, f"{row['id']}.json", json.dumps(told).encode())
    plain = {one.name.split()[0]: one for one in read_samples([str(folder / "good.json")], None, BadSamples(True))}
    shards = read_samples([str(folder / "part-*.tar")], None, BadSamples(True))
    assert {one.name.split()[0] for one in shards} == set(plain)
    for one in shards:
        other = plain[one.name.split()[0]]
        expected = writer().encode(other, 2)
        for name, value in writer().encode(one, 2).items():
            assert torch.equal(value, expected[name])
    with pytest.raises(FileNotFoundError, match="No shards"):
        read_samples([str(folder / "none-*.tar")], None, BadSamples(True))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    if name not in archive.getnames():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def test_the_order_follows_from_seed_and_epoch_and_batches_are_alike() -> None:
    lengths = torch.randint(5, 100, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSampler(lengths, 4, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(203)) and first == list(LengthSampler(lengths, 4, seed=3))
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == list(range(203))
    assert max(lengths) in [lengths[number] for number in first[:4]]
    plain = list(LengthSampler(lengths, 4, seed=3, grouped=False))

    def padding(order: list[int]) -> int:
        batches = [[lengths[number] for number in order[at : at + 4]] for at in range(0, 200, 4)]
        return sum(len(one) * max(one) - sum(one) for one in batches)

    assert padding(first) < 0.2 * padding(plain)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_batch_without_a_picture_gets_one_that_enters_no_loss(family: str, folder: Path) -> None:
    made = writer(family)
    model: Any = tiny.tiny_model() if family == "llava" else tiny_video.tiny_model(family)
    samples = read_samples([str(folder / "good.json")], None, BadSamples(True))
    rows = [made.encode(samples[2], 2)] * 2
    plain, held = Collator(made.processor)(rows), Collator(made.processor, blank_row(made))(rows)
    assert "pixel_values" not in plain and "pixel_values" in held
    assert len(held["input_ids"]) == len(plain["input_ids"]) + 1
    mixed = Collator(made.processor, blank_row(made))([*rows, made.encode(samples[0], 2)])
    assert len(mixed["input_ids"]) == 3, "a batch with a picture stays as it is"
    gradients = {}
    tower: list[int] = []
    attach(model, FlowCut(target_num=4))
    seen = model.model.get_image_features
    model.model.get_image_features = lambda *given, **named: tower.append(1) or seen(*given, **named)
    for name, batch in (("plain", plain), ("held", held)):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        gradients[name] = [loss, *(one.grad.clone() for one in model.model.language_model.parameters())]
    assert tower, "the tower ran"
    for one, other in zip(*gradients.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    reached = [one.grad for name, one in model.named_parameters() if "projector" in name or "merger" in name]
    assert reached and all(one is not None and not one.any() for one in reached)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_video_is_read_and_learned_from(family: str, folder: Path) -> None:
    pytest.importorskip("av", reason="videos are read with PyAV")
    make_clip = Path(__file__).parents[2] / "examples" / "make_clip.py"
    runpy.run_path(str(make_clip))["make_clip"](folder / "clip.mp4")
    row = said("<video>\nword1", "word3 word4", name="film")
    samples, bad = samples_of(folder, {**row, "video": "clip.mp4"}, {**row, "video": "gone.mp4"}, GOOD[0])
    assert len(samples) == 2 and "a missing picture: gone.mp4" in next(iter(bad.named.values()))
    made, model = writer(family), tiny_video.tiny_model(family)
    found = SampleSet(samples, made, FlowCut(target_num=4), bad, frames=4)
    batch = Collator(made.processor)([found[0], found[1]])
    assert {"pixel_values_videos", "pixel_values"} < batch.keys()
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    answer = made.tokenizer("word3 word4", add_special_tokens=False)["input_ids"]
    assert labels[labels != IGNORED].tolist() == [*answer, 2]
    with attach(model, FlowCut(target_num=4)) as handle:
        model(**batch).loss.backward()
    assert int((ids == tiny_qwen.VIDEO).sum()) > 4 and len(handle.trace.images) == 2
    assert all(image.tokens_after_layer[-1] < image.tokens_after_layer[0] for image in handle.trace.images)


def test_pictures_of_different_tiles_are_filled_up_with_zeros() -> None:
    found = joined([torch.ones(1, 2, 3), torch.ones(2, 3, 1)])
    assert found.shape == (3, 3, 3) and found.sum() == 6 + 6 and not found[0, 2].any() and not found[1, :, 1:].any()


def test_the_set_that_ships_has_200_good_samples_of_every_kind() -> None:
    samples = read_samples(["toy"], None, BadSamples(True))
    assert len(samples) == 200
    kinds = {(len(sample.pictures), len(sample.turns) > 2) for sample in samples}
    assert kinds >= {(0, False), (1, False), (1, True), (2, False)}
    for sample in samples:
        for name in sample.pictures:
            with Image.open(Path(str(sample.store)) / name) as picture:
                picture.load()
