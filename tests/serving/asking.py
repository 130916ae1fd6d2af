"""Prompts with pictures, what transformers answers to them with a method attached, and what vLLM does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

from flowcut import attach, make_method
from flowcut.checkpoints.mini import load_mini, mini_folder
from flowcut.methods import Method
from flowcut.serving.choice import ASK_FOR_POSITIONS

TOKENS = 6
PROMPTS = 20
MINI = "flowcut-mini"
PICTURES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.jpg"))

METHODS = {"compact": "flowcut(decoder_layer=none,target_num={})", "original": "flowcut_plus(target_num={})"}
"""A method that numbers the tokens that are left, and one that lets them keep their numbers."""


@dataclass(frozen=True)
class Asked:
    """A prompt with its pictures, which are named by numbers."""

    text: str
    pictures: list[Image.Image]
    numbers: list[int]


Answer = list[tuple[int, float]]
"""Tokens with their log-probabilities."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what transformers answers with it.

    Attributes:
        uncut: tokens of every prompt with nothing cut.
        truth: greedy answers with a method attached, by the name of the method in :data:`METHODS`.
        cut: tokens of every prompt that entered the language model then.
        silent: tokens that are never chosen.
        methods: the methods with the budget.
    """

    family: str
    folder: Path
    asked: list[Asked]
    uncut: list[int]
    truth: dict[str, list[Answer]]
    cut: dict[str, list[int]]
    silent: list[int]
    methods: dict[str, str]

    @property
    def pictures(self) -> list[int]:
        """The pictures of all prompts, in order."""
        return [number for one in self.asked for number in one.numbers]


def picture(family: str, seed: int) -> Image.Image:
    """A picture in which every region differs, of one of three shapes; the seventh is small."""
    if family == MINI:
        whole = Image.open(PICTURES[seed % len(PICTURES)]).convert("RGB")
        return whole.crop((4 * seed, 2 * seed, whole.width - seed, whole.height))
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    size = (56, 56) if seed == 6 else ((120, 100), (150, 70), (90, 160))[seed % 3]
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def prompts(family: str) -> list[Asked]:
    """Twenty: with one picture, with two, and with none; one picture is asked about twice."""
    token = checkpoints.PICTURES.get(family, "<image>")
    asked = []
    for number in range(PROMPTS):
        numbers = ([number], [number, number + 1], [])[number % 3] if number != 3 else [0]
        text = f"USER : {token * len(numbers)} what word{number} is shown ? ASSISTANT :"
        asked.append(Asked(text, [picture(family, seed) for seed in numbers], numbers))
    return asked


@torch.no_grad()
def expected(
    model: Any, processor: Any, method: Method, asked: list[Asked], silent: list[int], causal: bool = False
) -> tuple[list[Answer], list[int]]:
    """Greedy answers of transformers, one prompt after the other, and how many tokens of each it read.

    Args:
        causal: whether visual tokens that see one another shall not.
    """
    answers, lengths = [], []
    model.generation_config.eos_token_id = None
    with attach(model, method) as handle:
        for one in asked:
            inputs = processor(text=[one.text], images=one.pictures or None, return_tensors="pt")
            types = inputs.pop("token_type_ids", None)
            if types is not None and one.pictures:
                inputs["token_type_ids"] = torch.zeros_like(types) if causal else types
            more = {"output_scores": True, "return_dict_in_generate": True, "suppress_tokens": silent}
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **more)
            told = torch.cat(out.scores).log_softmax(dim=-1).max(dim=-1)
            answers.append(list(zip(told.indices.tolist(), told.values.tolist(), strict=True)))
            sequence = handle.trace.sequence if one.pictures else None
            read = inputs["input_ids"] if sequence is None else sequence.attention_mask
            lengths.append(read.shape[1] if sequence is None else int(read.sum()))
    return answers, lengths


def made(family: str, folder: Path) -> Case:
    """The case of one family."""
    if family == MINI:
        (model, processor), folder, budget = load_mini(), mini_folder(), 64
        silent = [model.config.image_token_id]
    else:
        (model, processor), budget = checkpoints.FAMILIES[family](), 8
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        silent = [token for token in range(100, 160) if token < model.config.get_text_config().vocab_size]
    asked = prompts(family)
    methods = {name: method.format(budget) for name, method in METHODS.items()}
    answers = {
        name: expected(model, processor, make_method(method), asked, silent, causal=family in checkpoints.SEE_ALL)
        for name, method in methods.items()
    }
    uncut = [len(processor(text=[one.text], images=one.pictures or None)["input_ids"][0]) for one in asked]
    truth, cut = ({name: both[place] for name, both in answers.items()} for place in (0, 1))
    return Case(family, folder, asked, uncut, truth, cut, silent, methods)


@contextmanager
def engine(folder: Path, method: Any, **options: Any) -> Iterator[Any]:
    """vLLM with the plug-in, in this process, and nothing left of it behind the block."""
    import vllm

    overrides: dict[str, Any] = {"architectures": ["FlowCutForConditionalGeneration"], "flowcut": method}
    # An engine collects garbage eight times, which takes longer than all else in it; once does.
    with patch("gc.collect"):
        running = vllm.LLM(
            str(folder),
            hf_overrides=overrides | ASK_FOR_POSITIONS if "plus" in str(method) else overrides,
            enforce_eager=True,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=8,
            kv_cache_memory_bytes=2**27,
            limit_mm_per_prompt={"image": 2},
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
    import vllm

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


def check(got: list[Answer], truth: list[Answer]) -> None:
    """The same tokens, with the same probabilities."""
    assert [[token for token, _ in one] for one in got] == [[token for token, _ in one] for one in truth]
    for one, other in zip(got, truth, strict=True):
        assert [told for _, told in one] == pytest.approx([told for _, told in other], abs=5e-4)
