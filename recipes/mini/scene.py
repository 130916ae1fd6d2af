"""What a rendered picture shows, patch by patch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .vocabulary import POSITIONS

SIDE = 336
"""Side of a picture in pixels."""

PATCH = 14
"""Side of a patch in pixels."""

GRID = SIDE // PATCH
"""Patches along a side."""

BACKGROUND = 255
"""The owner of a patch that shows none of the items to a notable degree."""

Kind = Literal["noun", "shape", "word"]


@dataclass(frozen=True)
class Item:
    """One thing in a scene.

    Attributes:
        kind: whether it is a cut-out, a drawn shape or a printed word.
        name: its noun, shape or word.
        color: the shape's colour name, else "".
        center: where its middle is, x and y in pixels.
        size: width and height in pixels before the picture's border cuts it.
    """

    kind: Kind
    name: str
    color: str
    center: tuple[int, int]
    size: tuple[int, int]

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column, 0 to 2, of the ninth of the picture that holds the centre."""
        third = SIDE / 3
        x, y = self.center
        return min(2, max(0, int(y / third))), min(2, max(0, int(x / third)))

    @property
    def position(self) -> str:
        """The name of that ninth."""
        row, column = self.cell
        return POSITIONS[row][column]

    @property
    def margin(self) -> float:
        """Distance in pixels of the centre from the nearest border between two ninths."""
        third = SIDE / 3
        return min(abs(value - border) for value in self.center for border in (third, 2 * third))


@dataclass(frozen=True)
class Scene:
    """A picture's contents.

    Attributes:
        items: everything placed, in the order in which it was drawn.
        owner: [24, 24] uint8, for every patch the index of the item that fills most of it, or `BACKGROUND`.
        touched: [items, 24, 24] bool, whether the item is visible in the patch at all (a tenth of its area).
        layout: the name of the layout that produced it.
    """

    items: tuple[Item, ...]
    owner: NDArray[np.uint8]
    touched: NDArray[np.bool_]
    layout: str

    def by_noun(self) -> dict[str, list[int]]:
        """For each noun the indices of the things of it that are visible."""
        found: dict[str, list[int]] = {}
        for index, item in enumerate(self.items):
            if item.kind == "noun" and self.touched[index].any():
                found.setdefault(item.name, []).append(index)
        return found

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps(
            {
                "items": [[i.kind, i.name, i.color, list(i.center), list(i.size)] for i in self.items],
                "owner": self.owner.tobytes().hex(),
                "touched": np.packbits(self.touched.reshape(len(self.items), -1), axis=1).tobytes().hex(),
                "layout": self.layout,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> Scene:
        """Read what `to_json` wrote."""
        data = json.loads(line)
        items = tuple(
            Item(kind, name, color, (center[0], center[1]), (size[0], size[1]))
            for kind, name, color, center, size in data["items"]
        )
        owner = np.frombuffer(bytes.fromhex(data["owner"]), np.uint8).reshape(GRID, GRID)
        packed = np.frombuffer(bytes.fromhex(data["touched"]), np.uint8).reshape(len(items), -1)
        touched = np.unpackbits(packed, axis=1)[:, : GRID * GRID].reshape(len(items), GRID, GRID).astype(bool)
        return cls(items, owner, touched, data["layout"])


def patches_of(pixels: NDArray[np.int16], count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Summarise which item owns every pixel into which item owns, and which items touch, every patch.

    Args:
        pixels: [336, 336] index of the item seen at each pixel, -1 for none.
        count: the number of items.

    Returns:
        `owner` (an item must fill three tenths of the patch) and `touched` (one tenth), as in `Scene`.
    """
    blocks = pixels.reshape(GRID, PATCH, GRID, PATCH)
    shares = np.stack([(blocks == index).mean(axis=(1, 3)) for index in range(count)])
    owner = np.where(shares.max(axis=0) >= 0.3, shares.argmax(axis=0), BACKGROUND).astype(np.uint8)
    return owner, shares >= 0.1
