"""What vLLM answers with the plug-in is what transformers answers with the method attached.

Runs where vLLM is installed, in an environment of its own (``.ci/serving``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

from flowcut import attach, make_method
from flowcut.methods import Method
from flowcut.serving.choice import ASK_FOR_POSITIONS

vllm = pytest.importorskip("vllm")

TOKENS = 6
PROMPTS = 20
BUDGET = 8


@dataclass(frozen=True)
class Asked:
    """A prompt with its pictures."""

    text: str
    pictures: list[Image.Image]


def picture(seed: int) -> Image.Image:
    """A picture in which every region differs, of one of three shapes."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    size = ((120, 100), (150, 70), (90, 160))[seed % 3]
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def prompts(family: str) -> list[Asked]:
    """Twenty: with one picture, with two, and with none; one picture is asked about twice."""
    token = checkpoints.PICTURES.get(family, "<image>")
    asked = []
    for number in range(PROMPTS):
        pictures = [picture(seed) for seed in ([number], [number, number + 1], [])[number % 3]]
        if number == 3:
            pictures = [picture(0)]
        text = f"USER : {token * len(pictures)} what word{number} is shown ? ASSISTANT :"
        asked.append(Asked(text, pictures))
    return asked


Answer = list[tuple[int, float]]
"""Tokens with their log-probabilities."""


def expected(model: Any, processor: Any, method: Method, asked: list[Asked], silent: list[int]) -> list[Answer]:
    """Greedy answers of transformers, one prompt after the other."""
    answers = []
    model.generation_config.eos_token_id = None
    with attach(model, method):
        for one in asked:
            inputs = processor(text=[one.text], images=one.pictures or None, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            more = {"output_scores": True, "return_dict_in_generate": True, "suppress_tokens": silent}
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **more)
            told = torch.cat(out.scores).log_softmax(dim=-1).max(dim=-1)
            answers.append(list(zip(told.indices.tolist(), told.values.tolist(), strict=True)))
    return answers


@contextmanager
def engine(folder: Path, method: str, **options: Any) -> Iterator[Any]:
    """vLLM with the plug-in, in this process, and nothing left of it behind the block."""
    overrides: dict[str, Any] = {"architectures": ["FlowCutForConditionalGeneration"], "flowcut": method}
    overrides |= options.pop("overrides", {})
    running = vllm.LLM(
        str(folder),
        hf_overrides=overrides,
        enforce_eager=True,
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 2, "video": 0},
        logprobs_mode="processed_logprobs",
        seed=0,
        **options,
    )
    try:
        yield running
    finally:
        running.llm_engine.engine_core.shutdown()
        del running
        gc.collect()


def answered(running: Any, asked: list[Asked], silent: list[int]) -> tuple[list[Answer], list[int]]:
    """Greedy answers of vLLM, and how many tokens each prompt had."""
    bias = dict.fromkeys(silent, -100.0)
    params = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, logit_bias=bias, ignore_eos=True, logprobs=0)
    given = [
        {"prompt": one.text, **({"multi_modal_data": {"image": one.pictures}} if one.pictures else {})} for one in asked
    ]
    results = running.generate(given, params, use_tqdm=False)
    outputs = [result.outputs[0] for result in results]
    answers = [
        [(token, step[token].logprob) for token, step in zip(out.token_ids, out.logprobs, strict=True)]
        for out in outputs
    ]
    return answers, [len(result.prompt_token_ids) for result in results]


CACHED = {"enable_prefix_caching": True, "max_num_batched_tokens": 48}
PLAIN = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0, "max_num_batched_tokens": 1024}
PLAIN |= {"enable_chunked_prefill": False}


COMPACT = f"flowcut(target_num={BUDGET},decoder_layer=none)"
ORIGINAL = f"flowcut_plus(target_num={BUDGET})"


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what transformers answers with it.

    Attributes:
        uncut: tokens of every prompt with nothing cut.
        truth: greedy answers with a method attached, by method.
        silent: tokens that are never chosen.
    """

    folder: Path
    asked: list[Asked]
    uncut: list[int]
    truth: dict[str, list[Answer]]
    silent: list[int]


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All of them, before the first engine starts: it makes classes of transformers its own."""
    wanted = {item.callspec.params["family"] for item in request.session.items if hasattr(item, "callspec")}
    return {
        family: made(family, tmp_path_factory.mktemp(family)) for family in checkpoints.FAMILIES if family in wanted
    }


@torch.no_grad()
def made(family: str, folder: Path) -> Case:
    """The case of one family."""
    model, processor = checkpoints.FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    asked = prompts(family)
    silent = [token for token in range(100, 160) if token < model.config.get_text_config().vocab_size]
    truth = {method: expected(model, processor, make_method(method), asked, silent) for method in (COMPACT, ORIGINAL)}
    uncut = [len(processor(text=[one.text], images=one.pictures or None)["input_ids"][0]) for one in asked]
    return Case(folder, asked, uncut, truth, silent)


def check(got: list[Answer], truth: list[Answer]) -> None:
    """The same tokens, with the same probabilities."""
    assert [[token for token, _ in one] for one in got] == [[token for token, _ in one] for one in truth]
    for one, other in zip(got, truth, strict=True):
        assert [told for _, told in one] == pytest.approx([told for _, told in other], abs=5e-4)


@pytest.mark.parametrize(
    ("method", "options"), [(COMPACT, CACHED), (ORIGINAL, PLAIN)], ids=["compact, caches, chunks", "original"]
)
@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_answers_are_those_of_transformers(
    family: str, method: str, options: dict[str, Any], cases: dict[str, Case]
) -> None:
    case = cases[family]
    overrides = ASK_FOR_POSITIONS if method == ORIGINAL and "qwen" not in family else {}
    with engine(case.folder, method, overrides=overrides, **options) as running:
        answers, lengths = answered(running, case.asked, case.silent)
        again, _ = answered(running, case.asked[:3], case.silent)
    check(answers, case.truth[method])
    check(again, case.truth[method][:3])
    for one, short, whole in zip(case.asked, lengths, case.uncut, strict=True):
        assert (short < whole) == bool(one.pictures)
