"""How the fuzzer judges what a model returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import families
import fuzz_turns
import oracle
import tiny
import tiny_qwen
import torch
from fuzz_turns import Turn
from torch import Tensor

from flowcut.trace import Trace

# A random model may well answer with a placeholder, which without a cache asks for one more image, or with an end.
SILENT = [2, tiny.IMAGE_TOKEN, families.VIDEO_TOKEN, tiny_qwen.IMAGE, tiny_qwen.VIDEO]
RECORDED: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "offloaded": {"do_sample": False, "cache_implementation": "offloaded"},
    "uncached": {"do_sample": False, "use_cache": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
}
NEAR = {"float32": (1e-4, 1e-4), "float64": (1e-5, 1e-5), "float16": (0.0, 0.05), "bfloat16": (0.0, 0.2)}
"""Relative and absolute difference that the order of additions may make, the latter as a share of the largest value."""


class Stream:
    """Stands for a stream of a GPU: everything happens at once."""

    def wait_stream(self, other: Stream) -> None:
        """Nothing to wait for."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        """The block is through."""


def generate_with(model: Any, inputs: dict[str, Any], kind: str, steps: int, **more: Any) -> Any:
    """An answer of ``steps`` tokens, generated in one of the ways of :data:`OPTIONS`."""
    options = {**OPTIONS[kind], **RECORDED, "max_new_tokens": steps, "suppress_tokens": SILENT, **more}
    with (
        mock.patch.object(torch, "Stream", Stream),
        mock.patch.object(torch.cuda, "default_stream", lambda device: Stream()),
    ):
        return model.generate(**inputs, **options)


def agree(found: Tensor, expected: Tensor, what: str, dtype: str) -> None:
    """Of one form, finite, and equal but for the order of additions."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert bool(found.isfinite().all()), f"{what} is not finite"
    relative, absolute = NEAR[dtype]
    if expected.numel():
        absolute *= max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=relative, atol=absolute, msg=lambda text: f"{what}: {text}"
    )


def ours(error: BaseException) -> bool:
    """Whether an error was raised by a line of the package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "flowcut" in trace.tb_frame.f_globals.get("__name__", "").split(".")[0]


def check_refusal(error: Exception) -> None:
    """An error of ours says what was given, what is allowed, and what to do: more than a word."""
    assert len(str(error)) > 40, f"a bare error: {error!r}"


def check_forward(plain: Any, turn: Turn, output: Any, labels: Tensor | None, dtype: str) -> None:
    """Logits, hidden states and loss of a forward pass."""
    rows = fuzz_turns.compute(plain, [turn])
    sequence = turn.trace.sequence
    if labels is not None and dtype in ("float32", "float64"):
        agree(output.loss, oracle.loss_of(rows, labels).to(output.loss), "loss", dtype)
    if turn.method.outputs == "kept" and sequence is not None:
        last = sequence.stretches[-1].new_mask.bool()
        assert output.logits.shape[:2] == last.shape
        for row, own in enumerate(rows):
            agree(output.logits[row, last[row]], own.logits, f"logits of row {row}", dtype)
        return
    expected = oracle.lay_out(rows, turn.inputs["attention_mask"])
    pairs = [("logits", output.logits, expected.logits)]
    cut_later = sequence.stretch_layers if sequence is not None and turn.method.ranks_ahead else ()
    for number, states in enumerate(output.hidden_states):
        if number in cut_later:
            # Recorded behind a layer, and cut in front of the next one.
            continue
        pairs.append((f"hidden_states[{number}]", states, expected.hidden_states[number]))
    for what, ours, theirs in pairs:
        assert ours.shape == theirs.shape, what
        agree(ours[expected.mask], theirs[expected.mask], what, dtype)


def check_generated(plain: Any, turns: Sequence[Turn], found: Any, length: int, dtype: str, copies: int = 1) -> None:
    """The logits of every step of an answer to ``length`` columns, ``copies`` answers to every prompt."""
    answers, logits = found.sequences[:, length:], torch.stack(found.logits, dim=1)
    steps = answers.shape[1]
    assert steps == logits.shape[1]
    for copy in range(copies):
        own = slice(copy, None, copies)
        rows = fuzz_turns.compute(plain, [*turns, *said(turns[-1], answers[own, :-1])])
        for row, expected in enumerate(rows):
            agree(logits[own][row], expected.logits[-steps:].to(logits), f"logits of sample {row}", dtype)


def said(turn: Turn, tokens: Tensor) -> list[Turn]:
    """The tokens ``[B, T]`` of an answer as a turn of their own, if there are any."""
    if not tokens.shape[1]:
        return []
    return [replace(turn, inputs=text_inputs(tokens), counted=True, encoded={}, trace=Trace())]


def text_inputs(tokens: Tensor) -> dict[str, Tensor]:
    """Tokens without padding."""
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def check_beams(plain: Any, turn: Turn, found: Any, length: int, dtype: str) -> None:
    """The scores of the best beams."""
    answers = found.sequences[:, length:]
    steps = answers.shape[1]
    rows = fuzz_turns.compute(plain, [turn, *said(turn, answers[:, :-1])])
    for row, score in enumerate(found.sequences_scores):
        # Suppressed tokens lose their score behind the softmax.
        shares = rows[row].logits[-steps:].double().log_softmax(dim=-1)
        expected = shares.gather(1, answers[row][:, None]).sum() / steps
        agree(score.double(), expected, "score of a beam", dtype)
