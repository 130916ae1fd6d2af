"""A conversation on one cache, and what is known of it: the columns said so far, and which of them are cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fuzz_turns
import oracle
import tiny
import torch
from fuzz_checks import agree, check_generated, generate_with, said
from fuzz_turns import Turn
from renamed import CACHE
from torch import Tensor, nn

from flowcut.trace import Trace

MakeTurn = Callable[[dict[str, Tensor], bool, Trace, dict[str, Any]], Turn]
OF_COLUMNS = ("input_ids", "attention_mask", "mm_token_type_ids")
PIXELS = {name for names in oracle.PIXELS.values() for name in names}


class Features(dict[str, Any]):
    """The encoded pictures that the first call inside a block hands to the language model: a user's own hook."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.hook = model.model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.update({} if self else kwargs.get("mm_encoder_outputs") or {})

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


class Talk:
    """A conversation.

    Args:
        inputs: of its first call.
        cache: that its calls share.
    """

    def __init__(self, inputs: dict[str, Tensor], cache: Any) -> None:
        self.cache = cache
        self.turns: list[Turn] = []
        empty = inputs["input_ids"][:, :0]
        self.told: dict[str, Tensor] = dict.fromkeys(OF_COLUMNS, empty)
        self.pending = empty

    @property
    def rows(self) -> int:
        """Samples."""
        return len(self.pending)

    def text(self, words: int, padded: int, seed: int, typed: bool) -> dict[str, Tensor]:
        """Words for every sample; the first one's may have padding in front."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 110, (self.rows, words), generator=generator)
        mask = torch.ones_like(ids)
        if padded < words:
            mask[0, :padded] = 0
        more = {"input_ids": ids.masked_fill(mask == 0, tiny.PAD_TOKEN), "attention_mask": mask}
        return {**more, "mm_token_type_ids": torch.zeros_like(ids)} if typed else more

    def _columns(self, more: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :data:`OF_COLUMNS` must be for a call that adds ``more``."""
        return {
            name: torch.cat([self.told[name], more[name].to(self.told[name])], 1) for name in OF_COLUMNS if name in more
        }

    def _turn(
        self, more: dict[str, Tensor], make: MakeTurn, counted: bool, trace: Trace, encoded: dict[str, Any]
    ) -> Turn:
        """The call's turn: what was not cached yet, and what it adds."""
        pictures = PIXELS & more.keys()
        inputs = dict(more)
        ones = torch.ones_like(self.pending)
        inputs["input_ids"] = torch.cat([self.pending, more["input_ids"]], dim=1)
        inputs["attention_mask"] = torch.cat([ones, more["attention_mask"]], dim=1)
        return make(inputs, counted, trace if pictures else Trace(), encoded)

    def _note(self, columns: dict[str, Tensor], answers: Tensor) -> None:
        """Keep the books behind a call."""
        ones = torch.ones_like(answers)
        self.told["input_ids"] = torch.cat([columns["input_ids"], answers], dim=1)
        self.told["attention_mask"] = torch.cat([columns["attention_mask"], ones], dim=1)
        types = columns.get("mm_token_type_ids")
        if types is None:
            types = torch.zeros_like(columns["input_ids"])
            types[:, : self.told["mm_token_type_ids"].shape[1]] = self.told["mm_token_type_ids"]
        self.told["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answers)], dim=1)

    @torch.no_grad()
    def speak(
        self, model: Any, plain: Any, make: MakeTurn, handle: Any, steps: int, dtype: str, more: dict[str, Tensor]
    ) -> None:
        """Let the model answer to ``more``, and judge the answer."""
        columns = self._columns(more)
        with Features(model) as encoded:
            found = generate_with(model, {**more, **columns}, "greedy", steps, **{CACHE: self.cache})
        length = columns["input_ids"].shape[1]
        answers = found.sequences[:, length:]
        self.turns.append(self._turn(more, make, True, handle.trace, encoded))
        check_generated(plain, self.turns, found, length, dtype)
        self.turns += said(self.turns[-1], answers[:, :-1])
        self._note(columns, answers)
        self.pending = answers[:, -1:]

    @torch.no_grad()
    def listen(self, model: Any, plain: Any, make: MakeTurn, handle: Any, dtype: str, more: dict[str, Tensor]) -> None:
        """Hand ``more`` to a forward pass, and judge its logits."""
        columns = self._columns(more)
        first = columns["input_ids"].shape[1] - more["input_ids"].shape[1] - self.pending.shape[1]
        given = {name: value for name, value in more.items() if name not in OF_COLUMNS}
        given |= {"input_ids": columns["input_ids"][:, first:], "attention_mask": columns["attention_mask"]}
        with Features(model) as encoded:
            output = model(**given, use_cache=True, **{CACHE: self.cache})
        turn = self._turn(more, make, False, handle.trace, encoded)
        self.turns.append(turn)
        rows = fuzz_turns.compute(plain, self.turns)
        if turn.method.outputs == "columns" or turn.trace.sequence is None:
            width = turn.mask.shape[1]
            for row, own in enumerate(rows):
                new = own.columns[-1] >= first
                expected = oracle.by_columns(own.logits[new], own.columns[-1][new] - first, width)
                real = turn.mask[row]
                agree(output.logits[row, real], expected[real].to(output.logits), f"logits of row {row}", dtype)
        self._note(columns, columns["input_ids"][:, :0])
        self.pending = columns["input_ids"][:, :0]
