"""The model that ships with flowcut: its conversion, its cache, and what happens without the data package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from shipped import require_mini
from transformers import LlamaConfig, LlamaForCausalLM

from flowcut import FlowCutError
from flowcut.checkpoints import load_mini, mini
from flowcut.checkpoints.mini_weights import GRID, halves_apart, merge_adapters, resample


def test_adapters_are_merged_as_peft_merges_them() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    state = {name: value.clone() for name, value in model.model.state_dict().items()}
    settings = LoraConfig(
        r=2,
        lora_alpha=4,
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 3},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 6},
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(model, settings)
    adapters = get_peft_model_state_dict(adapted)
    merge_adapters(state, adapters, 2.0)
    merged = adapted.merge_and_unload().model.state_dict()
    assert state.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(state[name], value)
    with pytest.raises(ValueError, match=r"belongs to no weight"):
        merge_adapters(state, {"base_model.model.model.other.lora_A.weight": torch.zeros(1, 1)}, 2.0)


def test_rows_of_rotary_pairs_go_back_to_halves() -> None:
    heads, size = 3, 8
    weight = torch.arange(heads * size * 2).reshape(heads * size, 2)
    pairs = weight.reshape(heads, 2, size // 2, 2).swapaxes(1, 2).reshape(weight.shape)
    assert torch.equal(pairs[:2, 0], weight[[0, size // 2], 0])
    assert torch.equal(halves_apart(pairs, heads), weight)


def test_positions_on_the_same_grid_stay() -> None:
    positions = torch.randn(1, GRID * GRID, 4)
    torch.testing.assert_close(resample(positions), positions)


def test_without_the_data_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "_PACKAGE", "flowcut_mini_that_is_not_there")
    with pytest.raises(FlowCutError, match=r"pip install \./packages/flowcut-mini"):
        load_mini()


def test_two_models_that_answer_alike_have_one_key_and_others_have_not() -> None:
    manifest = {"adapters.safetensors": "a", "training.json": "b", "LICENSE-SmolLM2": "c"}
    key = mini.weights_key(manifest, {"alpha_over_rank": 2, "tower": ["a note"]})
    noted = {**manifest, "training.json": "x", "LICENSE-SmolLM2": "y"}
    assert mini.weights_key(noted, {"alpha_over_rank": 2, "tower": []}) == key
    assert mini.weights_key(manifest, {"alpha_over_rank": 4}) != key
    assert mini.weights_key({**manifest, "adapters.safetensors": "x"}, {"alpha_over_rank": 2}) != key


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "cache" / "flowcut-mini-0"
    source.mkdir()
    with pytest.raises(FileNotFoundError):
        mini.write_checkpoint(source, target, lambda step, done, total: None)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"FLOWCUT_CACHE": "/a"}, "/a"), ({"XDG_CACHE_HOME": "/b"}, "/b/flowcut"), ({"HOME": "/c"}, "/c/.cache/flowcut")],
)
def test_environment_variables_move_the_cache(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLOWCUT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mini.cache_folder() == Path(expected)


def test_the_installed_model_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_mini()
    monkeypatch.setenv("FLOWCUT_CACHE", str(tmp_path))
    steps: list[tuple[str, int, int]] = []
    folder = mini.mini_folder(progress=lambda *step: steps.append(step))
    assert steps[-1][1] == steps[-1][2] and [path.name for path in tmp_path.iterdir()] == [folder.name]
    steps.clear()
    model, processor = load_mini(progress=lambda *step: steps.append(step))
    assert not steps
    assert model.config.vision_config.image_size == 336 and not model.training
    text = "Is there a dog?<|im_end|>\n"
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    first = model.get_input_embeddings()(torch.tensor([[5, 600]]))
    assert torch.isfinite(first).all() and first.std() > 0
