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


def expected(model: Any, processor: Any, method: Method, asked: list[Asked], silent: list[int]) -> list[list[int]]:
    """Greedy tokens of transformers, one prompt after the other."""
    answers = []
    model.generation_config.eos_token_id = None
    with attach(model, method):
        for one in asked:
            inputs = processor(text=[one.text], images=one.pictures or None, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, suppress_tokens=silent)
            answers.append(out[0, inputs["input_ids"].shape[1] :].tolist())
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
        seed=0,
        **options,
    )
    try:
        yield running
    finally:
        running.llm_engine.engine_core.shutdown()
        del running
        gc.collect()


def answered(running: Any, asked: list[Asked], silent: list[int]) -> tuple[list[list[int]], list[int]]:
    """Greedy tokens of vLLM, and how many tokens each prompt had."""
    params = vllm.SamplingParams(
        temperature=0, max_tokens=TOKENS, logit_bias=dict.fromkeys(silent, -100.0), ignore_eos=True
    )
    given = [
        {"prompt": one.text, **({"multi_modal_data": {"image": one.pictures}} if one.pictures else {})} for one in asked
    ]
    outputs = running.generate(given, params, use_tqdm=False)
    return [list(out.outputs[0].token_ids) for out in outputs], [len(out.prompt_token_ids) for out in outputs]


CACHED = {"enable_prefix_caching": True, "max_num_batched_tokens": 48}
PLAIN = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0, "max_num_batched_tokens": 1024}
PLAIN |= {"enable_chunked_prefill": False}


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what transformers answers with it.

    Attributes:
        uncut: tokens of every prompt with nothing cut.
        truth: greedy tokens with the method attached.
        silent: tokens that are never chosen.
    """

    folder: Path
    method: str
    asked: list[Asked]
    uncut: list[int]
    truth: list[list[int]]
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
    method = f"flowcut(target_num={BUDGET},decoder_layer=none)"
    asked = prompts(family)
    silent = [token for token in range(100, 160) if token < model.config.get_text_config().vocab_size]
    truth = expected(model, processor, make_method(method), asked, silent)
    uncut = [len(processor(text=[one.text], images=one.pictures or None)["input_ids"][0]) for one in asked]
    return Case(folder, method, asked, uncut, truth, silent)


@pytest.mark.parametrize("options", [CACHED, PLAIN], ids=["caches, chunks", "neither"])
@pytest.mark.parametrize("family", list(checkpoints.FAMILIES))
def test_greedy_tokens_are_those_of_transformers(family: str, options: dict[str, Any], cases: dict[str, Case]) -> None:
    case = cases[family]
    with engine(case.folder, case.method, **options) as running:
        tokens, lengths = answered(running, case.asked, case.silent)
        again, _ = answered(running, case.asked[:3], case.silent)
    assert tokens == case.truth
    assert again == case.truth[:3]
    for one, short, whole in zip(case.asked, lengths, case.uncut, strict=True):
        assert (short < whole) == bool(one.pictures)
