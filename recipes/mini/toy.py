"""Writes the 200 samples in LLaVA's format that ``flowcut train`` is tried with: drawn shapes, nothing by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import paint
from .questions import ask
from .scene import SIDE, Item, Scene, patches_of
from .vocabulary import COLORS, SHAPES

SEED = 5
PICTURES, PAIRS, TEXTS = 150, 25, 25
STORED_SIDE = 128
MOST_TURNS = 3


def write_toy(folder: Path) -> int:
    """Write ``toy.json`` and its pictures; the same every time.

    Returns:
        the number of samples.
    """
    random = np.random.default_rng(SEED)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    samples, scenes = [], []
    for number in range(PICTURES):
        picture, scene = drawn_scene(random)
        name = f"pictures/{number:03}.jpg"
        picture.resize((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS).save(folder / name, quality=80)
        scenes.append((name, scene))
        asked = ask(scene, random)[: int(random.integers(1, MOST_TURNS + 1))]
        samples.append(sample(f"shapes-{number}", [name], [(one.text, one.answer) for one in asked]))
    for number in range(PAIRS):
        first, second = (int(one) for one in random.permutation(PICTURES)[:2])
        there = scenes[first][1].items[0]
        if any((item.name, item.color) == (there.name, there.color) for item in scenes[second][1].items):
            answer = "both"
        else:
            answer = "first"
        question = f"Which of the two pictures shows a {there.color} {there.name}?"
        samples.append(sample(f"pair-{number}", [scenes[first][0], scenes[second][0]], [(question, answer)]))
    for number in range(TEXTS):
        one, other = (int(value) for value in random.integers(1, 10, 2))
        samples.append(sample(f"text-{number}", [], [(f"What is {one} plus {other}?", str(one + other))]))
    order = random.permutation(len(samples))
    listed = [samples[int(place)] for place in order]
    (folder / "toy.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return len(listed)


def drawn_scene(random: np.random.Generator) -> tuple[Image.Image, Scene]:
    """A picture of one to three shapes of different names and colours on a graded background, and what it shows."""
    noise = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = Image.blend(picture, Image.new("RGB", (SIDE, SIDE), "grey"), 0.5)
    pixels = np.full((SIDE, SIDE), -1, np.int16)
    cells = random.permutation(9)[: int(random.integers(1, 4))]
    names, tints = random.permutation(len(SHAPES)), random.permutation(len(COLORS))
    items = []
    for place, cell in enumerate(cells):
        name, color = SHAPES[int(names[place])], list(COLORS)[int(tints[place])]
        part = paint.shape(name, color, int(random.integers(70, 100)), random)
        row, column = divmod(int(cell), 3)
        center = (column * SIDE // 3 + SIDE // 6, row * SIDE // 3 + SIDE // 6)
        corner = (center[0] - part.width // 2, center[1] - part.height // 2)
        picture.paste(part, corner, part)
        visible = np.asarray(part.getchannel("A")) > 100
        left, top = max(corner[0], 0), max(corner[1], 0)
        seen = visible[top - corner[1] :, left - corner[0] :][: SIDE - top, : SIDE - left]
        pixels[top : top + seen.shape[0], left : left + seen.shape[1]][seen] = place
        items.append(Item("shape", name, color, center, part.size))
    owner, touched = patches_of(pixels, len(items))
    return picture, Scene(tuple(items), owner, touched, "toy")


def sample(name: str, pictures: list[str], turns: list[tuple[str, str]]) -> dict[str, Any]:
    """One entry. flowcut-mini's answers begin with a space, as it was trained."""
    told: dict[str, Any] = {"id": name}
    if pictures:
        told["image"] = pictures[0] if len(pictures) == 1 else pictures
    conversations = []
    for number, (question, answer) in enumerate(turns):
        marks = "<image>\n" * len(pictures) if number == 0 else ""
        conversations.append({"from": "human", "value": f"{marks}{question}"})
        conversations.append({"from": "gpt", "value": f" {answer}"})
    return {**told, "conversations": conversations}
