"""The model ``flowcut_hf`` of lmms-eval: any model that flowcut loads, in batches, on CPU or CUDA, in any dtype.

Prompts come from the processor's chat template, pictures go through the processor as they are. Checkpoints in LLaVA's
own format are read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ..checkpoints.loading import LoadedModel, load_model
from .arguments import check_names, named_parameters, read_model_arguments
from .likelihood import continuation_losses
from .processing import batch_inputs
from .prompts import Prompt, generation_arguments, prompt_of_messages, prompt_of_text, until, written_prompt
from .stopping import ending_the_run
from .wrapped import FROM_THE_HARNESS, OWN, with_method


class FlowcutHfSimple(lmms):  # type: ignore[misc, unused-ignore]
    """``--model flowcut_hf --force_simple``, which multiple-choice tasks by likelihood need.

    Args:
        pretrained: a folder, a hub id, or ``flowcut-mini``.
        device, dtype: by name; by default the best here, each process on a CUDA device of its own.
        batch_size: questions in one pass.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; by default the model's own.
        max_new_tokens: longest answer where a task names none.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        max_new_tokens: int = 1024,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{self.accelerator.local_process_index}"
        self.loaded: LoadedModel = load_model(pretrained, device, dtype)
        if attn_implementation is not None:
            self.loaded.model.set_attn_implementation(attn_implementation)
        self.batch_size = whole_number("batch_size", batch_size)
        self.max_new_tokens = whole_number("max_new_tokens", max_new_tokens)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> lmms:
        """An instance with a method attached; errors end the process."""
        with ending_the_run("setting up --model flowcut_hf"):
            given = read_model_arguments(arg_string, OWN)
            if "wrapped" in given.own:
                raise ValueError("model_args: flowcut_hf wraps no class; wrapped=NAME is for --model flowcut.")
            known = named_parameters(cls)
            check_names(given.rest, known, "flowcut_hf", given.method)
            if "pretrained" not in given.rest:
                raise ValueError("model_args: pretrained=MODEL is needed: a folder, a hub id, or flowcut-mini.")
            more = additional_config or {}
            passed = {name: more[name] for name in FROM_THE_HARNESS if name in known and more.get(name) is not None}
            return with_method(cls(**{**passed, **given.rest}), given)

    @property
    def model(self) -> Any:
        """The Hugging Face model."""
        return self.loaded.model

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.loaded.device

    def prompt_of(self, request: Any) -> Prompt:
        """What a request of the harness asks."""
        text, generation, doc_to_visual, doc_id, task, split = request.args
        return prompt_of_text(text, doc_to_visual(self.task_dict[task][split][doc_id]), generation)

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answers, in the requests' order."""
        answers: list[GenerationResult] = []
        for some in self._batches(requests, lambda request: repr(self._generation_of(request))):
            answers += self._answers([self.prompt_of(request) for request in some])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """For every request the mean negative log-likelihood of its continuation, and whether it is the greedy one.

        The harness takes the smallest of several, as for its own classes that give the loss.

        Raises:
            ValueError: a request has no picture and no task, as those for mutual information.
        """
        losses: list[tuple[float, bool]] = []
        for some in self._batches(requests, lambda request: ""):
            prompts, continuations = [], []
            for request in some:
                if len(request.args) != 6:
                    raise ValueError("flowcut_hf has no unconditional likelihoods, which acc_mutual_info asks for.")
                text, target, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                prompts.append(prompt_of_text(text, doc_to_visual(doc), {}))
                continuations.append(target if isinstance(target, str) else target(doc))
            losses += continuation_losses(self.loaded, prompts, continuations)
        return losses

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("flowcut_hf asks single questions; tasks of several rounds need --model flowcut.")

    def clean(self) -> None:
        """Free the model."""
        del self.loaded
        super().clean()

    def _generation_of(self, request: Any) -> Any:
        return request.args[1]

    def _batches(self, requests: Sequence[Any], alike: Callable[[Any], str]) -> Iterator[list[Any]]:
        """Requests in their order, at most ``batch_size`` at a time, of one kind each."""
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for _, group in groupby(requests, alike):
                same = list(group)
                for first in range(0, len(same), self.batch_size):
                    yield same[first : first + self.batch_size]
                    bar.update(len(same[first : first + self.batch_size]))

    def _answers(self, prompts: Sequence[Prompt]) -> list[GenerationResult]:
        """Answers to questions of one batch; those without pictures go by themselves."""
        if len(prompts) > 1 and not all(prompt.images for prompt in prompts):
            return [answer for prompt in prompts for answer in self._answers([prompt])]
        processor, model = self.loaded.processor, self.loaded.model
        texts = [written_prompt(processor, prompt.messages) for prompt in prompts]
        inputs = batch_inputs(self.loaded, texts, [prompt.images for prompt in prompts])
        generation = prompts[0].generation
        arguments = generation_arguments(generation, self.max_new_tokens)
        with torch.inference_mode():
            generate: Any = model.generate
            output = generate(**inputs, **arguments)
        rows = output[:, inputs["input_ids"].shape[1] :]
        said = processor.batch_decode(rows, skip_special_tokens=True)
        return [
            GenerationResult(until(text, generation), TokenCounts(output_tokens=len(row)))
            for text, row in zip(said, rows, strict=True)
        ]


class FlowcutHf(FlowcutHfSimple):
    """``--model flowcut_hf``."""

    is_simple = False

    def prompt_of(self, request: Any) -> Prompt:
        """What a request of the harness asks."""
        _, doc_to_messages, generation, doc_id, task, split = request.args
        return prompt_of_messages(doc_to_messages(self.task_dict[task][split][doc_id]), generation)

    def _generation_of(self, request: Any) -> Any:
        return request.args[2]


def whole_number(name: str, value: int | str) -> int:
    """A number of at least 1.

    Raises:
        ValueError: it is none.
    """
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
    return int(value)
