"""Composes scenes: what is in them, how large and where; draws them; knows what every patch shows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import paint
from .material import Material, Split
from .scene import SIDE, Item, Scene, patches_of
from .vocabulary import COLORS, SHAPES, WORDS, Noun, nouns

SPLIT_SEEDS: dict[Split, int] = {"train": 1, "test": 2, "new": 3, "validation": 4}
"""First half of every scene's seed; the second half is its index, so no two splits share a scene."""

_LAYOUTS = {
    # name: (probability, fewest and most items, shortest and longest side in px)
    "small": (0.22, (3, 9), (40, 80)),
    "medium": (0.38, (3, 9), (64, 112)),
    "crowd": (0.14, (5, 9), (84, 128)),
    "large": (0.18, (2, 4), (115, 200)),
    "close": (0.08, (1, 1), (260, 560)),
    "herd": (0.0, (5, 10), (48, 92)),
}
_TRIES = 40

HERDS_FROM = 6400
"""Training scenes from this number on are herds: one or two nouns, up to six of each, and two to four shapes.

In the scenes before them few things are there more than twice, which is little to learn counting from, and a
dialogue asks about one or two shapes.
"""

FLOCKS_FROM = 15360
"""Training scenes from this number on are flocks: as varied as the first ones, but fuller, and things are repeated.

Herds never hide two things of one noun among others that look alike.
"""

_REPEATED, _REPEATED_IN_FLOCKS = 0.3, 0.8


def scene_seed(split: Split, index: int) -> tuple[int, int]:
    """The seed from which everything about a scene follows."""
    return SPLIT_SEEDS[split], index


def render(material: Material, split: Split, index: int) -> tuple[Image.Image, Scene]:
    """Draw scene number `index` of a split; the same picture every time.

    Returns:
        the 336 x 336 RGB picture and what it shows.
    """
    random = np.random.default_rng(scene_seed(split, index))
    names = list(_LAYOUTS)
    layout = names[int(random.choice(len(names), p=[_LAYOUTS[name][0] for name in names]))]
    flock = split == "train" and index >= FLOCKS_FROM
    if flock:
        layout = "medium" if layout == "close" else layout
    elif split == "train" and index >= HERDS_FROM:
        layout = "herd"
    _, (fewest, most), sizes = _LAYOUTS[layout]
    count = int(random.integers(fewest, most + 1))
    if flock:
        count = max(count, int(random.integers(fewest, most + 1)))
    repeated = _REPEATED_IN_FLOCKS if flock else _REPEATED
    picture = paint.background(material, split, random)
    pixels = np.full((SIDE, SIDE), -1, np.int16)
    items: list[Item] = []
    occupied: list[tuple[int, int, int, int]] = []
    for thing, kind, color in _contents(layout, count, repeated, random):
        longest = int(random.integers(sizes[0], sizes[1] + 1))
        if isinstance(thing, Noun):
            part, name = paint.noun(material, thing, longest, split, random), thing.name
        elif kind == "shape":
            part, name = paint.shape(thing, color, longest, random), thing
        else:
            part, name = paint.word(material, thing, int(random.integers(26, 60)), random), thing
        corner = _place(part.size, occupied, layout, random)
        if corner is None:
            continue
        left, top = corner
        occupied.append((left, top, left + part.width, top + part.height))
        picture.paste(part, corner, part)
        _mark(pixels, part, corner, len(items))
        center = (left + part.width // 2, top + part.height // 2)
        items.append(Item(kind, name, color, center, part.size))
    owner, touched = patches_of(pixels, len(items))
    return picture, Scene(tuple(items), owner, touched, layout)


def _contents(
    layout: str, count: int, repeated: float, random: np.random.Generator
) -> list[tuple[Noun | str, str, str]]:
    """Choose what to draw, as (noun or name, kind, colour); a noun is repeated with the probability `repeated`."""
    stock = nouns()
    order = [stock[int(index)] for index in random.permutation(len(stock))]
    if layout == "close":
        return [(order[0], "noun", "")]
    contents: list[tuple[Noun | str, str, str]] = []
    if layout == "herd":
        for noun in order[: int(random.integers(1, 3))]:
            contents += [(noun, "noun", "")] * min(int(random.integers(1, 7)), count - len(contents))
        shapes = min(int(random.integers(2, 5)), count - len(contents))
    else:
        shapes = int(random.integers(0, min(3, count) + 1)) if random.random() < 0.7 else 0
    names = random.permutation(len(SHAPES))
    tints = random.permutation(len(COLORS))
    contents += [(SHAPES[int(names[k])], "shape", list(COLORS)[int(tints[k])]) for k in range(shapes)]
    if layout == "herd":
        return contents
    if layout != "large" and random.random() < 0.4:
        contents.append((WORDS[int(random.integers(len(WORDS)))], "word", ""))
    room = max(1, count - len(contents))
    while room > 0:
        repeats = int(random.integers(1, min(room, 6) + 1)) if random.random() < repeated else 1
        if random.random() < 0.3 and contents and isinstance(contents[-1][0], Noun):
            alike = [noun for noun in order if noun.group == contents[-1][0].group]  # hard to tell apart
            chosen = alike[0] if alike else order[0]
        else:
            chosen = order[0]
        order.remove(chosen)
        contents += [(chosen, "noun", "")] * repeats
        room -= repeats
    return [contents[int(index)] for index in random.permutation(len(contents))]


def _place(
    size: tuple[int, int], occupied: list[tuple[int, int, int, int]], layout: str, random: np.random.Generator
) -> tuple[int, int] | None:
    """A corner at which the part hardly overlaps what is there; None if there is no room."""
    width, height = size
    if layout == "close":
        return _shift(width, random), _shift(height, random)
    if width > SIDE or height > SIDE:
        return None
    for _ in range(_TRIES):
        left, top = int(random.integers(SIDE - width + 1)), int(random.integers(SIDE - height + 1))
        box = (left, top, left + width, top + height)
        if all(_overlap(box, other) <= 0.08 for other in occupied):
            return left, top
    return None


def _shift(length: int, random: np.random.Generator) -> int:
    slack = SIDE - length
    return int(random.integers(min(slack, 0), max(slack, 0) + 1))


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / smaller


def _mark(pixels: np.ndarray, part: Image.Image, corner: tuple[int, int], index: int) -> None:
    left, top = corner
    visible = np.asarray(part.getchannel("A")) > 100
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + part.width, SIDE), min(top + part.height, SIDE)
    pixels[y0:y1, x0:x1][visible[y0 - top : y1 - top, x0 - left : x1 - left]] = index
