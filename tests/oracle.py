"""The plain second computation: what an attached model must return, worked out by the uncut model.

Every sample is computed alone and without padding: the embeddings of its kept columns, one decoder layer after the
other, and where the method cuts inside the decoder, fewer of them from there on. Which columns stay is read from the
trace of the attached call; everything else (places of the features, positions, masks) is worked out here. Then
:func:`by_columns` lays the values out as the contract says: one entry for every column of ``input_ids``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowcut import Method
from flowcut.models import ModelParts, find_parts
from flowcut.trace import ImageTrace, Trace

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}
"""The arguments of a call that bring the pictures of each modality."""


@dataclass(frozen=True)
class Row:
    """What one sample gives, without padding.

    Attributes:
        columns: for every entry of ``hidden_states`` the columns, ascending, that have a value there.
        hidden_states: as transformers numbers them: the embeddings, then every layer's output; the last is normed.
        attentions: every layer's weights ``[heads, n, n]``; empty unless attention is computed eagerly.
        logits: ``[n, vocabulary]``, of the last entry of ``columns``.
    """

    columns: list[Tensor]
    hidden_states: list[Tensor]
    attentions: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Expected:
    """What the attached model must return for a batch.

    Attributes:
        mask: boolean ``[B, L]``, the columns that hold a token; the values of all others need only be finite.
        logits: ``[B, L, vocabulary]``.
        hidden_states: each ``[B, L, width]``; the last is ``last_hidden_state``.
    """

    mask: Tensor
    logits: Tensor
    hidden_states: list[Tensor]

    def check(self, found: Tensor, expected: Tensor, what: str) -> None:
        """``found`` has the expected form, is finite, and has the expected values wherever there is a token."""
        assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
        assert bool(found.isfinite().all()), f"{what} is not finite"
        close(found[self.mask], expected[self.mask], what)

    def check_output(self, output: Any) -> None:
        """Logits, hidden states and last hidden state of an output, those it has."""
        if "logits" in output:
            self.check(output.logits, self.logits, "logits")
        if "last_hidden_state" in output:
            self.check(output.last_hidden_state, self.hidden_states[-1], "last_hidden_state")
        found = output.hidden_states or ()
        assert len(found) in (0, len(self.hidden_states))
        for number, states in enumerate(found):
            self.check(states, self.hidden_states[number], f"hidden_states[{number}]")


def close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal but for the order of additions."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5, msg=lambda text: f"{what}: {text}")


def by_columns(values: Tensor, columns: Tensor, length: int) -> Tensor:
    """Values ``[n, ...]`` of the kept ``columns`` (ascending) as ``[length, ...]``.

    A column without a value has that of the nearest kept column before it, zeros where there is none.
    """
    place = torch.searchsorted(columns, torch.arange(length), right=True) - 1
    laid = values[place.clamp(min=0)]
    laid[place < 0] = 0
    return laid


def lay_out(rows: Sequence[Row], mask: Tensor) -> Expected:
    """The rows of a batch by columns; ``mask`` ``[B, L]`` is that of the call."""
    length = mask.shape[1]
    return Expected(
        mask=mask.bool(),
        logits=torch.stack([by_columns(row.logits, row.columns[-1], length) for row in rows]),
        hidden_states=[
            torch.stack([by_columns(row.hidden_states[number], row.columns[number], length) for row in rows])
            for number in range(len(rows[0].hidden_states))
        ],
    )


@torch.no_grad()
def encode(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The features of a call's pictures, as the model hands them out now: call it while the method is attached."""
    base, encoded = find_parts(model)[1].base, {}
    for modality, names in PIXELS.items():
        if any(name in inputs for name in names):
            encoder = getattr(base, f"get_{modality}_features")
            accepted = inspect.signature(encoder).parameters
            given = {name: value for name, value in inputs.items() if name in accepted}
            encoded[modality] = encoder(**given, return_dict=True)
    return encoded


def compute(
    model: Any,
    method: Method,
    inputs: dict[str, Tensor],
    encoded: dict[str, Any],
    trace: Trace,
    answers: Tensor | None = None,
) -> list[Row]:
    """Every sample of a call by itself; the method must be detached by now.

    Args:
        inputs: of the call, uncut; 1 and 0 in ``attention_mask`` anywhere.
        encoded: from :func:`encode`.
        trace: of the call.
        answers: ``[B, T]`` tokens that were generated behind the prompt.
    """
    parts = find_parts(model)[1]
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    embeds, added = embedded(parts, ids, encoded, trace)
    columns = stretches_of(trace, mask)
    places = [positions(parts, method, inputs, kept) for kept in columns]
    if answers is not None:
        new = torch.arange(answers.shape[1])
        embeds = torch.cat([embeds, parts.base.get_input_embeddings()(answers)], dim=1)
        added = [torch.cat([level, level.new_zeros(*answers.shape, level.shape[2])], dim=1) for level in added]
        columns = [[torch.cat([kept, new + ids.shape[1]]) for kept in stretch] for stretch in columns]
        places = [torch.cat([own, following(own, new)], dim=-1) for own in places]
    bounds = trace.sequence.stretch_layers if trace.sequence is not None else ()
    return [
        decode(
            parts,
            embeds[row],
            [level[row] for level in added],
            [own[..., row, :] for own in places],
            [stretch[row] for stretch in columns],
            bounds,
        )
        for row in range(len(ids))
    ]


def stretches_of(trace: Trace, mask: Tensor) -> list[list[Tensor]]:
    """The columns of every sample that each run of decoder layers sees, ascending, as the trace names them."""
    sequence = trace.sequence
    if sequence is None:
        return [[row.nonzero()[:, 0] for row in mask]]
    assert torch.equal(sequence.output_columns, sequence.stretches[-1].cut.columns())
    assert not any(sequence.recycled_tokens), "tokens that are means of others are not worked out here"
    found = []
    for stretch in sequence.stretches:
        named = [columns[real.bool()] for columns, real in zip(stretch.cut.columns(), stretch.new_mask, strict=True)]
        assert all(bool(own[columns].all()) for own, columns in zip(mask, named, strict=True)), "padding is kept"
        assert all(columns.tolist() == sorted(set(columns.tolist())) for columns in named)
        found.append(named)
    return found


def embedded(parts: ModelParts, ids: Tensor, encoded: dict[str, Any], trace: Trace) -> tuple[Tensor, list[Tensor]]:
    """The embeddings ``[B, L, width]`` of a call, NaN where a visual token was cut, and what DeepStack adds to them."""
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for token in parts.placeholders.values():
        visual |= ids == token
    embeds = parts.base.get_input_embeddings()(ids.masked_fill(visual, 0))
    embeds = embeds.masked_fill(visual[..., None], float("nan"))
    levels = max((len(getattr(output, "deepstack_features", None) or ()) for output in encoded.values()), default=0)
    added = [torch.zeros_like(embeds) for _ in range(levels)]
    images = list(trace.images)
    for modality, output in encoded.items():
        own = [images.pop(0) for _ in output.pooler_output]
        places = torch.cat(kept_placeholders((ids == parts.placeholders[modality]).nonzero(), own))
        rows, columns = places.unbind(dim=1)
        embeds[rows, columns] = only_kept(output.pooler_output, own)
        for number, level in enumerate(getattr(output, "deepstack_features", None) or ()):
            added[number][rows, columns] = only_kept(level, own)
    assert not images
    return embeds, added


def kept_placeholders(found: Tensor, images: Sequence[ImageTrace]) -> list[Tensor]:
    """Of the placeholders ``[P, 2]`` in reading order those that stay, image by image."""
    blocks = found.split([image.placeholders for image in images])
    return [block[image.placeholder_kept] for block, image in zip(blocks, images, strict=True)]


def only_kept(features: Sequence[Tensor], images: Sequence[ImageTrace]) -> Tensor:
    """The features of the kept tokens; those of a method that cuts behind the projector are still whole."""
    return torch.cat(
        [
            tokens if len(tokens) == image.visual_tokens else tokens[image.placeholder_kept]
            for tokens, image in zip(features, images, strict=True)
        ]
    )


def positions(parts: ModelParts, method: Method, inputs: dict[str, Tensor], kept: Sequence[Tensor]) -> Tensor:
    """Position ids ``[B, L]`` (or ``[3, B, L]``) of every column where the columns ``kept`` are left.

    Renumbered, they count only what is left; those of cut columns mean nothing.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if parts.grid_positions:
        base: Any = parts.base
        given = {name: inputs.get(name) for name in inspect.signature(base.get_rope_index).parameters}
        places: Tensor = base.get_rope_index(**given)[0]
        return places
    places = torch.arange(ids.shape[1]).expand(ids.shape)
    if method.positions == "original":
        return places
    cut = mask.bool()
    for row, columns in enumerate(kept):
        cut = cut.index_put((torch.full_like(columns, row), columns), torch.tensor(False))
    return places - cut.long().cumsum(dim=1)


def following(places: Tensor, new: Tensor) -> Tensor:
    """The position ids of tokens that are generated behind ``places``; on several axes they go on from the highest."""
    last = places[:, -1:] if places.dim() == 2 else places.amax(dim=(0, 2))[:, None]
    ahead = last + 1 + new
    return ahead.expand(*places.shape[:-1], -1)


def decode(
    parts: ModelParts,
    embeds: Tensor,
    added: Sequence[Tensor],
    places: Sequence[Tensor],
    columns: Sequence[Tensor],
    bounds: Sequence[int],
) -> Row:
    """One sample through the decoder, layer by layer.

    Args:
        embeds: ``[L, width]``, every column of the sample.
        added: what is added behind the first layers.
        places: ``[L]`` or ``[3, L]`` for each run of layers, position ids of every column.
        columns: the columns that each run of layers sees.
        bounds: the first layer of every run but the first.
    """
    model: Any = parts.language_model
    run, alive = 0, columns[0]
    states = embeds[alive][None]
    row = Row([alive], [states[0]], [], states)
    for number, layer in enumerate(parts.decoder_layers):
        own = places[run][..., None, alive]
        with ExitStack() as stack:
            attention = layer.get_submodule("self_attn")
            recorder = attention.register_forward_hook(lambda module, args, output: row.attentions.append(output[1]))
            stack.callback(recorder.remove)
            states = layer(
                states,
                attention_mask=causal(len(alive), states.dtype),
                position_embeddings=model.rotary_emb(states, position_ids=own),
                position_ids=None,
            )
        if number + 1 in bounds[: len(columns) - 1]:
            run += 1
            stays = torch.isin(alive, columns[run])
            alive, states = alive[stays], states[:, stays]
        row.columns.append(alive)
        row.hidden_states.append(states[0])
        if number < len(added):
            states = states + added[number][alive]
    assert torch.equal(alive, columns[-1])
    row.hidden_states[-1] = model.norm(states)[0]
    head: nn.Module = parts.top.get_output_embeddings()
    attentions = [weights[0] for weights in row.attentions if weights is not None]
    return Row(row.columns, row.hidden_states, attentions, head(row.hidden_states[-1]))


def causal(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[1, 1, length, length]``: 0 where a token may look, the lowest number elsewhere."""
    return torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]


def loss_of(rows: Sequence[Row], labels: Tensor) -> Tensor:
    """Mean cross entropy over the labels of the kept tokens, each predicted from the kept token before it."""
    losses = []
    for row, own in enumerate(rows):
        kept = own.columns[-1]
        wanted = labels[row, kept[1:]]
        scores = own.logits[:-1][wanted != -100].log_softmax(dim=-1)
        losses.append(-scores.gather(1, wanted[wanted != -100][:, None])[:, 0])
    return torch.cat(losses).mean()
