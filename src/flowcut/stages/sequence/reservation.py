"""How much of a static cache a cut prompt needs."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import Cache
from transformers.cache_utils import StaticLayer

from ...trace import Stretch

MADE = "flowcut_may_shrink"
"""Attribute of a cache that ``generate()`` made for one generation."""


class Reservation:
    """Shortens static caches to what a cut prompt needs, before they take their memory.

    A length that changes from one generation to the next has a compiled model compiled anew; so the longest that was
    needed so far is kept, as transformers keeps its own. A cache that the caller made keeps the length he gave it.

    Attributes:
        longest: what was needed so far, by number of the stretch of layers that see the same columns.
    """

    def __init__(self) -> None:
        self.longest: dict[int, int] = {}

    def shorten(self, cache: Cache | None, number: int, layers: Iterable[int], stretch: Stretch) -> None:
        """Shorten layers of a cache that ``generate()`` made.

        Args:
            cache: it, or another, which is left as it is.
            number: of the stretch.
            layers: their indices.
            stretch: the columns that they see.
        """
        if not getattr(cache, MADE, False):
            return
        assert cache is not None
        lost = stretch.cut.source_length - stretch.cut.index.shape[1]
        for index in layers:
            layer = cache.layers[index]
            if isinstance(layer, StaticLayer) and not layer.is_sliding and not layer.is_initialized:
                self.longest[number] = max(self.longest.get(number, 0), layer.max_cache_len - lost)
                layer.max_cache_len = min(layer.max_cache_len, self.longest[number])
