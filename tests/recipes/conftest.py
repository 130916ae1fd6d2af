"""Lets the tests import the recipes, which the installed package lacks, and gives them tiny data."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.mini.material import Material
from recipes.mini.vocabulary import nouns
from recipes.mini.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with drawn cut-outs and backgrounds, random towers and a byte-level tokenizer."""
    place = Workspace(tmp_path_factory.mktemp("mini"))
    random = np.random.default_rng(0)
    for noun in nouns():
        for path in (*noun.cutouts, *noun.held_out):
            target = place.stamps / f"{path}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            stamp = Image.new("RGBA", (60, 40))
            color = tuple(int(value) for value in random.integers(0, 256, 3))
            ImageDraw.Draw(stamp).ellipse((5, 5, 55, 35), fill=(*color, 255))
            stamp.save(target)
    place.backgrounds.mkdir()
    for index in range(8):
        noise = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 400)).save(place.backgrounds / f"{index}.jpg")
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    shutil.copy(fonts / "DejaVuSans.ttf", place.unpacked / "DejaVuSans.ttf")
    _tower(place)
    _language(place)
    return place


@pytest.fixture(scope="session")
def material(workspace: Workspace) -> Material:
    """The workspace's pictures."""
    return Material(workspace)


def _tower(place: Workspace) -> None:
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=6,
        mlp_ratio=1,
        image_size=336,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(place.tower)


def _language(place: Workspace) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    ).save_pretrained(place.language)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=len(vocabulary),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(place.language)
