"""What SECURITY.md promises: nothing that comes with a checkpoint is run."""

from __future__ import annotations

import ast
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_checkpoint

from flowcut import UnsupportedModelError
from flowcut.checkpoints import load_llava
from flowcut.checkpoints.loading import load_model

ROOT = Path(__file__).parents[2]
SOURCES = [file for folder in ("src", "packages", "recipes", "examples") for file in (ROOT / folder).rglob("*.py")]


def calls(file: Path) -> Iterator[tuple[str, dict[str, object], bool]]:
    """Every call in a file: the function, its keywords that are constants, whether a transformers Auto class loads."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    automatic = {
        ast.unparse(node.target): ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {
                word.arg: word.value.value if isinstance(word.value, ast.Constant) else word.value
                for word in node.keywords
                if word.arg is not None
            }
            name = ast.unparse(node.func)
            owner, _, function = name.rpartition(".")
            loads = function == "from_pretrained" and automatic.get(owner, owner).startswith("Auto")
            yield name, constants, loads


def test_no_source_file_asks_for_foreign_code_or_unpickles() -> None:
    assert len(SOURCES) > 120
    loading = set()
    for file in SOURCES:
        for name, constants, loads in calls(file):
            where = f"{file.relative_to(ROOT)}: {name}"
            assert name not in ("eval", "exec") and not name.startswith(("pickle.", "joblib.", "dill.")), where
            assert name not in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"), where
            if file.is_relative_to(ROOT / "src"):  # recipes unpack wheels that pip fetched
                assert name.rpartition(".")[2] not in ("extractall", "unpack_archive"), where
            assert constants.get("trust_remote_code", False) is False, where
            if name == "torch.load":
                assert constants.get("weights_only") is True, where
            if loads and file.is_relative_to(ROOT / "src"):
                assert constants.get("trust_remote_code") is False, where
                loading.add(file.name)
    assert loading == {"launch.py", "llava.py", "loading.py", "mini.py"}


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
class Config(LlavaConfig): pass
class Model(LlavaForConditionalGeneration): pass
class Processor(LlavaProcessor): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""
AUTO = {
    "config.json": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"},
    "processor_config.json": {"AutoProcessor": "code.Processor"},
    "tokenizer_config.json": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]},
}


def change(file: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that names code of its own everywhere, and a user who would agree to it."""
    folder = tiny_checkpoint.save_checkpoint(tmp_path / "checkpoint")
    (folder / "code.py").write_text(CODE.format(mark=str(tmp_path / "was run")))
    for name, classes in AUTO.items():
        change(folder / name, auto_map=classes)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    return folder


def test_code_beside_a_known_model_is_left_alone(trapped: Path) -> None:
    loaded = load_model(str(trapped), device="cpu")
    assert type(loaded.model).__module__.startswith("transformers.models.llava")
    assert type(loaded.processor).__module__.startswith("transformers.models.llava")
    assert not (trapped.parent / "was run").exists()


def test_a_model_that_needs_its_own_code_is_refused(trapped: Path) -> None:
    change(trapped / "config.json", model_type="made_up")
    with pytest.raises(UnsupportedModelError, match="'made_up'"):
        load_model(str(trapped), device="cpu")
    assert not (trapped.parent / "was run").exists()


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return sys.exit, ("was run",)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "tower"}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Trap()}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        load_llava(folder)
