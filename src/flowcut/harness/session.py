"""One model of the harness with a method at work: attaching, measuring, and the record that is left behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import __version__
from ..errors import UnsupportedModelError
from ..measure.efficiency import Recorder, doubling
from ..methods import Method
from .journal import Ask, Journal
from .stopping import ending_the_run, stopping, without_padding

REQUESTS = ("generate_until", "loglikelihood", "generate_until_multi_round")
"""The methods by which the harness asks a model."""

RECORD = "efficiency-{rank}.json"
"""What one process measured, in the folder that ``efficiency=`` names."""


class Session:
    """Puts a method and a recorder around a harness's model, until the harness cleans it.

    Args:
        harness_model: an instance of a subclass of ``lmms``, whose ``model`` is the Hugging Face model.
        method: what to attach; ``None`` for nothing.
        record: the folder for the efficiency record; ``None`` for none.
        pairs: whether some calls are answered uncut as well, for the record.
        journal: keeps answers as they come; ``None`` for none.

    Raises:
        UnsupportedModelError: there is no model inside, or it can't be cut by this method.
        ValueError: the method's budget does not fit the model.
    """

    def __init__(
        self,
        harness_model: Any,
        method: Method | None,
        record: Path | None = None,
        pairs: bool = True,
        journal: Journal | None = None,
    ) -> None:
        model = getattr(harness_model, "model", None)
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"{type(harness_model).__name__} holds no Hugging Face model as its `model`, so nothing can be "
                "attached. Wrap a class that loads one, such as llava_hf, or use --model flowcut_hf."
            )
        self.harness_model = harness_model
        self.record = record
        self.model = model
        self.recorder = Recorder(model, method, doubling if pairs and record is not None else None)
        generate: Any = model.generate
        answer = generate if record is None else partial(self.recorder.generate, generate)
        vars(model)["generate"] = stopping(answer, "answering")
        for name in REQUESTS:
            ask = getattr(harness_model, name)
            if journal is not None:
                ask = journal.answering(ask, int(harness_model.batch_size))
            ask = without_padding(ask)
            if name == "loglikelihood":
                ask = partial(as_results, ask)
            setattr(harness_model, name, stopping(partial(self._begun, ask), name))
        self._clean = harness_model.clean
        harness_model.clean = self.close

    def _begun(self, ask: Any, requests: list[Any]) -> Any:
        self.recorder.start()
        return ask(requests)

    def close(self) -> None:
        """Write the record, take the method off, and let the harness free the model."""
        with ending_the_run("writing the efficiency record"):
            if self.record is not None:
                self.record.mkdir(parents=True, exist_ok=True)
                path = self.record / RECORD.format(rank=self.harness_model.rank)
                facts = {"batch_size": int(self.harness_model.batch_size), "harness": "lmms-eval"}
                path.write_text(json.dumps(self.recorder.as_dict(**facts)) + "\n", encoding="utf-8")
        self.recorder.close()
        vars(self.model).pop("generate", None)
        for name in (*REQUESTS, "clean"):
            vars(self.harness_model).pop(name, None)
        del self.recorder, self.model
        self._clean()


def as_results(ask: Ask, requests: list[Any]) -> list[Any]:
    """Losses in the one form that lmms-eval 0.7.3 hands on: it writes a plain pair out as a text."""
    from lmms_eval.api.instance import GenerationResult

    pairs: list[Any] = [getattr(said, "text", said) for said in ask(requests)]
    return [GenerationResult((float(loss), bool(greedy))) for loss, greedy in pairs]


def separate_cached_answers(*more: str) -> None:
    """Let the keys of lmms-eval's response cache hold our version.

    They hold the model's name, its arguments (so method and settings) and the harness's version, which this process
    then tells with ours behind it: an answer of another version of flowcut is never taken for one of this.

    Args:
        more: what else shall tell answers apart.
    """
    from lmms_eval import utils

    tell = getattr(utils.get_lmms_eval_cache_version, "harness_alone", utils.get_lmms_eval_cache_version)

    def with_ours() -> str:
        return "+".join([str(tell()), f"flowcut-{__version__}", *more])

    with_ours.harness_alone = tell  # type: ignore[attr-defined]
    utils.get_lmms_eval_cache_version = with_ours
