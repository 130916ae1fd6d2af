"""What the fuzzer plays with: a tiny model of every family with prompts, and methods with settings to draw from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any
from unittest import mock

import families
import padding
import tiny
import tiny_qwen
import torch
import zoo
from torch import Tensor

from flowcut.models import find_parts

DEPTH = 3
"""Decoder layers; two cuts fit between them."""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = tuple(zoo.CASES)

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "flowcut": [
        {},
        {"cut_every": 1},
        {"decoder_layer": None},
        {"decoder_layer": 0, "positions": "original"},
        {"tower_budget": "paper", "cut_every": 3},
        {"merge_unit": "patch"},
        {"video_budget": "pooled", "criteria": "relation"},
        {"adaptive": False, "padding_counts": True},
    ],
    "flowcut_plus": [
        {},
        {"relevance": "text"},
        {"early": "repeated"},
        {"decoder_layer": 1},
    ],
    "fastv": [{"layers": 1}, {"layers": 2}],
    "pyramiddrop": [{"layers": (0,)}, {"layers": (0, 1)}, {"layers": (1,)}],
    "visionzip": [{}],
}
"""Settings to draw from, for models of :data:`DEPTH` layers; SparseVLM needs more of them."""


@dataclass
class World:
    """A model of one family.

    Attributes:
        model: the one that is played with.
        samples: prompts with pictures, then some without.
        pictured: how many of them have pictures.
        together: a padded batch from samples.
        grid: whether positions are places in a picture.
        plain: untouched copies by number format and attention.
    """

    name: str
    model: Any
    samples: list[Any]
    pictured: int
    together: Any
    grid: bool
    plain: dict[tuple[str, str], Any] = field(default_factory=dict)

    def untouched(self, dtype: str = "float32", attention: str = "sdpa") -> Any:
        """A copy that nothing was ever attached to."""
        if (dtype, attention) not in self.plain:
            made = copy.deepcopy(self.plain["float32", "sdpa"]).to(DTYPES[dtype])
            made.set_attn_implementation(attention)
            self.plain[dtype, attention] = made
        return self.plain[dtype, attention]

    @cached_property
    @torch.no_grad()
    def probe(self) -> Tensor:
        """Logits of the untouched model."""
        logits: Tensor = self.untouched()(**self.batch([0, 1], "left", 0, "float32")).logits
        return logits

    def restore(self, model: Any) -> None:
        """Give a model the weights and buffers of an untouched one: those of half formats are rounded for good."""
        model.to(torch.float32)
        plain = self.untouched()
        with torch.no_grad():
            for tensors in ("parameters", "buffers"):
                for own, exact in zip(getattr(model, tensors)(), getattr(plain, tensors)(), strict=True):
                    own.copy_(exact)

    def batch(self, rows: list[int], layout: str, noise: int, dtype: str) -> dict[str, Tensor]:
        """A batch of the samples named by ``rows`` (of any size), with other pictures for every ``noise`` but 0."""
        chosen = [self.samples[row % len(self.samples)] for row in rows]
        texts_alone = all(row % len(self.samples) >= self.pictured for row in rows)
        together = families.collate if texts_alone and not self.grid else self.together
        inputs: dict[str, Tensor] = together(chosen, "left")
        if layout != "left":
            inputs = padding.spread(inputs, layout)
        generator = torch.Generator().manual_seed(noise)
        for name, value in inputs.items():
            if value.is_floating_point():
                if noise:
                    value = value + 0.3 * torch.randn(value.shape, generator=generator)
                inputs[name] = value.to(DTYPES[dtype])
        return inputs


@cache
def world(name: str) -> World:
    """The world of one family, made once in a process."""
    shape, text = {**tiny.SHAPE, "num_hidden_layers": 5}, {**tiny_qwen.TEXT, "num_hidden_layers": DEPTH}
    with (
        mock.patch.object(zoo, "DEPTH", DEPTH),
        mock.patch.dict(tiny.SHAPE, shape),
        mock.patch.dict(tiny_qwen.TEXT, text),
    ):
        case = zoo.CASES[name]()
    model = case.model
    samples = [*case.samples, *more_samples(name, model)]
    qwen = "qwen" in name
    texts: list[Any] = [
        tiny_qwen.sample([], [], words, seed=words)
        if qwen
        else {"input_ids": families.prompt([], words=words, seed=words)}
        for words in (4, 11)
    ]
    made = World(name, model, [*samples, *texts], len(samples), case.together, find_parts(model)[1].grid_positions)
    for attention in ("eager", "sdpa"):
        # transformers lays its recorders of hidden states at the first calls.
        model.set_attn_implementation(attention)
        with torch.no_grad():
            model(**made.batch([0], "left", 0, "float32"), output_hidden_states=True)
    with torch.no_grad():
        # generate() leaves the last static cache on the model.
        model.generate(**made.batch([0], "left", 0, "float32"), max_new_tokens=2, cache_implementation="static")
    made.plain["float32", "sdpa"] = copy.deepcopy(model)
    return made


def more_samples(name: str, model: Any) -> list[Any]:
    """Prompts beside those of the zoo: several pictures, other sizes, a clip."""
    if name.startswith("llava,"):
        count = tiny.placeholders_of(model)
        prompts = [tiny.prompt(images, words, words, placeholders=count) for images, words in ((3, 2), (1, 9))]
        return [
            {"input_ids": ids, "pixel_values": tiny.pictures(number, number)}
            for ids, number in zip(prompts, (3, 1), strict=True)
        ]
    if name in ("llava_next", "llava_onevision"):
        return [zoo.with_tiles(model, [(90, 70), (60, 150)], 3)]
    if name == "video_llava":
        pixels = next(key for key in zoo.CASES[name]().samples[0] if key.startswith("pixel") and "video" not in key)
        ids = families.prompt([(tiny.IMAGE_TOKEN, tiny.PATCHES)] * 2, seed=7)
        return [{"input_ids": ids, pixels: tiny.pictures(2, 7)}]
    if name in ("idefics3", "internvl"):
        ids = families.prompt([(tiny.IMAGE_TOKEN, tiny.PATCHES)], words=9, seed=5)
        return [{"input_ids": ids, "pixel_values": zoo.large(1, 5)}]
    return [
        tiny_qwen.sample([(1, 6, 8), (1, 8, 6)], [], 3, seed=6),
        tiny_qwen.sample([], [(2, 8, 6)], 6, seed=7, frames_apart=name == "qwen3_vl"),
    ]
