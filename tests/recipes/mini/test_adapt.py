"""What the tower is adapted on: patches of small and large items, mostly of things that are there more than once."""

from __future__ import annotations

import torch

from recipes.mini.adapt import BACKGROUND_SHARE, ONES_KEPT, drawn, thinned
from recipes.mini.alignment import ASPECTS, CONTENTS, NUMBERS, SIZES, UNKNOWN

CONTENT, SIZE, COUNT = (ASPECTS.index(aspect) for aspect in ("content", "size", "count"))


def _targets(rows: list[tuple[int, int, int]]) -> torch.Tensor:
    wanted = torch.full((len(rows), len(ASPECTS)), UNKNOWN)
    for place, (content, size, count) in enumerate(rows):
        wanted[place, CONTENT], wanted[place, SIZE], wanted[place, COUNT] = content, size, count
    return wanted


def test_background_gets_its_share_and_small_items_more_than_theirs() -> None:
    background = CONTENTS.index("background")
    huge, tiny = SIZES.index("huge"), SIZES.index("tiny")
    rows = [(background, UNKNOWN, UNKNOWN)] * 50 + [(0, huge, 0)] * 40 + [(1, tiny, 0)] * 9 + [(UNKNOWN,) * 3]
    index = drawn(_targets(rows), 20_000, torch.Generator().manual_seed(0))
    shares = [((index >= low) & (index < high)).float().mean().item() for low, high in ((0, 50), (50, 90), (90, 99))]
    assert abs(shares[0] - BACKGROUND_SHARE) < 0.02
    assert abs(shares[1] / shares[2] - 40 * 0.25 / 9) < 0.1
    assert not (index == 99).any()


def test_most_things_without_a_double_do_not_tell_their_number() -> None:
    one, two = NUMBERS.index("one"), NUMBERS.index("two")
    rows = [(content % 140, 0, one) for content in range(140)] + [(5, 0, two)]
    silent = 0
    for seed in range(20):
        wanted = thinned(_targets(rows), torch.Generator().manual_seed(seed))
        silent += int((wanted[:140, COUNT] == UNKNOWN).sum())
        assert wanted[140, COUNT] == two
    assert abs(silent / 2800 - (1 - ONES_KEPT)) < 0.05
