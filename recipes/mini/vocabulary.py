"""The words that scenes are made of: nouns with their cut-outs, shapes, colours, positions, printed words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 30),
    "green": (40, 150, 50),
    "blue": (35, 75, 205),
    "purple": (130, 45, 160),
    "black": (15, 15, 15),
    "white": (248, 248, 248),
}
"""Colour names of the shapes, with their red, green and blue in 0..255 before jitter."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "arrow")
"""Names of the drawn shapes."""

POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the nine cells of a picture, by row and column."""

WORDS = tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split())
"""The words that scenes print, three to seven letters each."""

_IRREGULAR = {
    "sheep": "sheep", "fish": "fish", "deer": "deer", "mouse": "mice", "goose": "geese", "buffalo": "buffalo",
    "scissors": "scissors", "pants": "pants", "shelf": "shelves", "fly": "flies", "butterfly": "butterflies",
    "cherry": "cherries", "strawberry": "strawberries", "trophy": "trophies",
}  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A plain noun and the cut-outs that show it.

    Attributes:
        name: the word itself.
        group: a coarse kind; absent nouns of a present noun's group make hard negatives.
        cutouts: paths below the stamp folder, without suffix, for training and for the usual test.
        held_out: cut-outs that only the new-instance split shows.
    """

    name: str
    group: str
    cutouts: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def nouns() -> tuple[Noun, ...]:
    """All nouns in the order of nouns.txt.

    Raises:
        ValueError: a line of the file doesn't have its three fields or names no cut-out to train on.
    """
    found = []
    for line in (Path(__file__).parent / "nouns.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 3:
            raise ValueError(f"nouns.txt: expected 'noun | group | cut-outs', got {line!r}")
        paths = fields[2].split()
        kept = tuple(path for path in paths if not path.endswith("*"))
        if not kept:
            raise ValueError(f"nouns.txt: {fields[0]!r} has no cut-out to train on")
        held_out = tuple(path.rstrip("*") for path in paths if path.endswith("*"))
        found.append(Noun(fields[0], fields[1], kept, held_out))
    return tuple(found)


@cache
def noun_groups() -> dict[str, str]:
    """The group of every noun, by name."""
    return {noun.name: noun.group for noun in nouns()}


def plural(name: str) -> str:
    """The plural of one of our nouns or shapes."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh", "ss")) or name in {"potato", "tomato", "mango"}:
        return name + "es"
    return name + "s"


def with_article(name: str) -> str:
    """The noun after "a" or "an", as it is spoken."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
