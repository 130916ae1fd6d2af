"""The order of samples: at random, batches of similar length where wanted, and the same again for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BATCHES_SORTED = 50
"""So many batches are sorted by length among themselves."""


class LengthSampler(Sampler[int]):
    """Numbers of samples in an order that follows from the seed and the epoch alone.

    That is what lets a run go on at the exact sample, in any number of processes: nothing depends on the state of a
    random generator.

    Args:
        lengths: tokens of every sample, as the language model will read it.
        batch: samples that should be alike: those of an update, over all processes.
        seed: see above.
        grouped: whether they are made alike; otherwise the order is at random.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, *, grouped: bool = True) -> None:
        self.lengths, self.batch, self.seed, self.grouped = lengths, batch, seed, grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.grouped:
            return iter(order)
        stretch = self.batch * BATCHES_SORTED
        batches: list[list[int]] = []
        for start in range(0, len(order), stretch):
            alike = sorted(order[start : start + stretch], key=lambda number: -self.lengths[number])
            batches += [alike[first : first + self.batch] for first in range(0, len(alike), self.batch)]
        # The longest samples come first, so that memory runs out at once or not at all; an incomplete batch stays last.
        whole = [one for one in batches if len(one) == self.batch]
        rest = [one for one in batches if len(one) != self.batch]
        longest = max(range(len(whole)), key=lambda at: self.lengths[whole[at][0]], default=None)
        shuffled = [whole[at] for at in torch.randperm(len(whole), generator=generator).tolist() if at != longest]
        first = [] if longest is None else [whole[longest]]
        return iter([number for one in [*first, *shuffled, *rest] for number in one])
