"""What an attached model returns: logits and hidden states by the columns of the prompt.

Outside code pairs outputs with labels, masks and ``logits_to_keep`` by the columns of ``input_ids``. So behind the base
model everything is laid out by these columns again: a column that stayed has its own value, a cut one that of the last
column that stayed before it, from which the next token is predicted. The head still computes no more rows than stayed,
and the model's own loss is computed on them alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...algorithm.columns import ColumnCut, laid_out
from ...methods.base import Method
from ...models.base import ModelParts
from ..forward_pass import ForwardPass, at_work
from ..observing.overrides import Override
from ..observing.stage import Stage


@dataclass
class LaidOut:
    """The base model's output on its way through the head.

    Attributes:
        kept: ``[B, K, width]``, the last hidden states of the columns that stay.
        states: ``[B, L, width]``, the same by columns; the model passes it, or a part of it, to its head.
        places: ``[B, L]``, see :meth:`~flowcut.algorithm.columns.ColumnCut.last_kept`.
        first: the first column that the head was asked for, where that was all columns from there on.
        asked: ``[B, n]``, the places of the columns that the head was asked for, while it works on ``kept`` instead.
        logits: of the columns that stay, and by columns, where the head was asked for all.
    """

    kept: Tensor
    states: Tensor
    places: Tensor
    first: int | None = None
    asked: Tensor | None = None
    logits: tuple[Tensor, Tensor] | None = None

    def columns_of(self, part: Tensor) -> int | None:
        """The first column of ``part``, if it is ``states[:, first:]`` and nothing else; else ``None``."""
        whole = self.states
        if part.dim() != 3 or part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return None
        first = whole.shape[1] - part.shape[1]
        same = part.stride() == whole.stride() and part.shape[::2] == whole.shape[::2]
        starts = part.storage_offset() - whole.storage_offset() == first * whole.stride(1)
        return first if same and starts else None


class OutputStage(Stage):
    """Lays a model's outputs out by columns until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method, owner: object) -> None:
        super().__init__()
        self.method = method
        self.owner = owner
        layers = method.decoder_layers(parts.second_cut)
        # The states recorded behind a layer are cut already, unless the cut comes in front of the next one.
        self.cuts = [layer + 1 if method.ranks_ahead else layer for layer in layers]
        if parts.top is parts.base:
            return
        self.overrides.append(Override(parts.top, "loss_function", self._loss, slot="_loss_function"))
        top: Any = parts.top
        head: nn.Module | None = top.get_output_embeddings()
        if head is not None and method.outputs == "columns":
            self.handles = [
                head.register_forward_pre_hook(self._before_head),
                head.register_forward_hook(self._behind_head),
            ]

    def lay_out(self, current: ForwardPass, output: Any) -> Any:
        """The base model's output (a ``ModelOutput`` or a tuple) by columns."""
        cuts = [stretch.cut for stretch in current.stretches]
        if self.method.outputs == "kept" or all(cut.whole for cut in cuts):
            return output
        kept: Tensor = output[0]
        last = cuts[-1].last_kept()
        states = laid_out(kept, last)
        current.outputs = LaidOut(kept, states, last)

        def by_layer(recorded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            places = [*(cut.last_kept() for cut in cuts[:-1]), last]
            inner = [laid_out(state, places[bisect_left(self.cuts, layer)]) for layer, state in enumerate(recorded)]
            return (*inner[:-1], states)

        if isinstance(output, tuple):
            return (states, *(by_layer(value) if are_hidden_states(value) else value for value in output[1:]))
        output.last_hidden_state = states
        if output.get("hidden_states") is not None:
            output.hidden_states = by_layer(output.hidden_states)
        return output

    def _before_head(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook of the head: it works on the columns that stay, where that is less than it is asked for."""
        current = at_work(self.owner)
        if current is None or current.outputs is None or not args:
            return None
        outputs: LaidOut = current.outputs
        outputs.first = first = outputs.columns_of(args[0])
        if first is None or args[0].shape[1] <= outputs.kept.shape[1]:
            return None
        outputs.asked = outputs.places[:, first:]
        return (outputs.kept, *args[1:])

    def _behind_head(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Hook of the head: its logits by the columns that were asked for."""
        current = at_work(self.owner)
        if current is None or current.outputs is None or current.outputs.asked is None:
            return None
        outputs: LaidOut = current.outputs
        assert outputs.asked is not None
        logits = laid_out(output, outputs.asked)
        if outputs.asked.shape == outputs.places.shape:
            outputs.logits = (output, logits)
        outputs.asked = None
        return logits

    def _loss(
        self, original: Callable[..., Tensor], logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The model's own loss, over the tokens that are left; ``labels`` ``[B, L]`` of cut ones are of no account."""
        current = at_work(self.owner)
        if current is None or not current.stretches or current.stretches[-1].cut.whole:
            return original(logits, labels, *args, **kwargs)
        cut = current.stretches[-1].cut
        by_columns = self.method.outputs == "columns"
        outputs: LaidOut | None = current.outputs
        ignored = kwargs.get("ignore_index", -100)
        if by_columns and labels.shape[1] == logits.shape[1] and outputs is not None and outputs.first:
            # The last columns alone, of both.
            stay = cut.stay()[:, outputs.first :].to(labels.device)
            return original(logits, labels.masked_fill(~stay, ignored), *args, **kwargs)
        expected = cut.source_length if by_columns else cut.index.shape[1]
        if labels.shape[1] != cut.source_length or logits.shape[1] != expected:
            raise ValueError(
                f"labels have {labels.shape[1]} columns; they need one for every column of input_ids "
                f"({cut.source_length}), placeholders included, or for the last ones that logits_to_keep=n asks for."
            )
        if kwargs.get("shift_labels") is not None and by_columns:
            kwargs["shift_labels"] = without_next_of_cut(kwargs["shift_labels"], cut, ignored)
            return original(logits, labels, *args, **kwargs)
        if outputs is not None and outputs.logits is not None and logits is outputs.logits[1]:
            logits = outputs.logits[0]
        elif by_columns:
            return original(logits, labels.masked_fill(~cut.stay().to(labels.device), ignored), *args, **kwargs)
        return original(logits, cut.take(labels, ignored), *args, **kwargs)


def are_hidden_states(value: Any) -> bool:
    """Whether an entry of a tuple of outputs holds hidden states ``[B, S, width]`` of all layers."""
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, Tensor) and v.dim() == 3 for v in value)


def without_next_of_cut(shift_labels: Tensor, cut: ColumnCut, ignored: int) -> Tensor:
    """Labels ``[B, L]`` that stand one column before their token, ``ignored`` where the token is cut."""
    stay = cut.stay().to(shift_labels.device)
    return shift_labels.masked_fill(~nn.functional.pad(stay[:, 1:], (0, 1), value=True), ignored)
