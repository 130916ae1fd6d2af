"""Answers to questions in batches, with what each cost; a question whose picture cannot be read is named."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..attaching import Handle, attach, detach
from ..checkpoints.llava_format import is_original_llava
from ..checkpoints.loading import LoadedModel, read_config
from ..checkpoints.mini import MINI
from ..inputs.clips import Clip
from ..methods import Method
from ..models import find_parts
from ..tasks.decoding import decoded
from .parts import Entry, Identity
from .pictures import squared, visual_of
from .prompts import inputs_of
from .questions import Question

Visual = Image.Image | Clip | None


@dataclass(frozen=True)
class Prepared:
    """Questions that are asked in one pass, and the tensors that ask them."""

    questions: list[Question]
    inputs: Any
    visual: bool


class Asker:
    """Asks a model questions, in LLaVA's way.

    Args:
        loaded: the model; whatever is attached to it is taken off.
        method: what cuts; ``None`` for the model as it is.
        folder: where pictures lie.
        mode: see :data:`~flowcut.llava_files.prompts.MODES`.
        max_new_tokens: at most so many tokens per answer.
        identity: of the run, for the answers' ids.
        square: whether pictures are padded to a square.
        trouble: called with a message about every question whose picture cannot be read.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method | None,
        folder: Path | None,
        mode: str,
        max_new_tokens: int,
        identity: Identity,
        square: bool,
        trouble: Callable[[str], None],
    ) -> None:
        self.loaded, self.method, self.folder, self.mode = loaded, method, folder, mode
        self.max_new_tokens, self.identity, self.trouble = max_new_tokens, identity, trouble
        mean = getattr(getattr(loaded.processor, "image_processor", None), "image_mean", None)
        self.mean = tuple(mean) if square and mean is not None else None

    def ask(self, questions: Iterable[Question], batch_size: int) -> Iterator[list[Entry]]:
        """The answers, batch by batch, in the questions' order; questions in trouble are left out."""
        detach(self.loaded.model)
        with nullcontext() if self.method is None else attach(self.loaded.model, self.method) as handle:
            for batch in batches(questions, batch_size):
                started = time.perf_counter()
                entries = [entry for prepared in self._prepared(batch) for entry in self._answers(prepared, handle)]
                share = (time.perf_counter() - started) / max(1, len(entries))
                yield [Entry(place, answer, share, tokens) for place, answer, tokens in sorted(entries, key=first_of)]

    def _prepared(self, batch: Sequence[Question]) -> Iterator[Prepared]:
        """The batch's passes: pictures together, questions without one together, videos one by one."""
        groups: dict[str, list[tuple[Question, Visual]]] = {}
        for question in batch:
            try:
                visual = visual_of(question, self.folder)
            except (OSError, ValueError) as error:
                self.trouble(f"{question.name}: {error}")
                continue
            if isinstance(visual, Image.Image) and self.mean is not None:
                visual = squared(visual, self.mean)
            name = f"video {question.place}" if isinstance(visual, Clip) else type(visual).__name__
            groups.setdefault(name, []).append((question, visual))
        for group in groups.values():
            yield from self._processed(group)

    def _processed(self, group: list[tuple[Question, Visual]]) -> Iterator[Prepared]:
        """One pass; where the processor refuses it, each question by itself, and the one that it refuses is named."""
        asked = [question for question, _ in group]
        visuals = [visual for _, visual in group]
        try:
            inputs = inputs_of(self.loaded.processor, self.mode, [one.text for one in asked], visuals)
        except ValueError as error:
            if len(group) == 1:
                self.trouble(f"{asked[0].name} ({asked[0].visual or 'its own picture'}): {error}")
                return
            for one in group:
                yield from self._processed([one])
            return
        yield Prepared(asked, inputs, visuals[0] is not None)

    @torch.inference_mode()
    def _answers(self, prepared: Prepared, handle: Handle | None) -> list[tuple[int, dict[str, Any], int | None]]:
        inputs = prepared.inputs.to(self.loaded.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.loaded.dtype)
        model: Any = self.loaded.model
        output = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens)
        texts = decoded(self.loaded, list(output[:, inputs["input_ids"].shape[1] :]))
        tokens: Sequence[int | None] = [None] * len(texts)
        if prepared.visual and handle is not None and handle.trace.sequence is not None:
            tokens = handle.trace.sequence.visual_tokens
        answers = [self._line(question, text) for question, text in zip(prepared.questions, texts, strict=True)]
        return [
            (question.place, answer, count)
            for question, answer, count in zip(prepared.questions, answers, tokens, strict=True)
        ]

    def _line(self, question: Question, text: str) -> dict[str, Any]:
        """An answer as LLaVA's scripts write it; its id follows from the run and the question alone."""
        named = json.dumps([self.identity, question.place], sort_keys=True)
        return {
            **question.first,
            "text": text,
            **question.last,
            "answer_id": hashlib.sha256(named.encode()).hexdigest()[:22],
            "model_id": self.identity["model_id"],
            "metadata": {} if self.method is None else {"method": self.identity["method"]},
        }


def first_of(entry: tuple[int, dict[str, Any], int | None]) -> int:
    """The place of an answer."""
    return entry[0]


def batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """The questions in their order, ``size`` at a time."""
    batch: list[Question] = []
    for question in questions:
        batch.append(question)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def pads_to_square(path_or_id: str, loaded: LoadedModel) -> bool:
    """Whether a model was trained on pictures padded to a square: LLaVA-1.5, unless its own config says otherwise."""
    family, _ = find_parts(loaded.model)
    if family.class_name != "LlavaForConditionalGeneration":
        return False
    config = {} if path_or_id == MINI else read_config(path_or_id)
    return not is_original_llava(config) or config.get("image_aspect_ratio") == "pad"
