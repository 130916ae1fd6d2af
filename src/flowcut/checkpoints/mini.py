"""flowcut-mini, the small real model that ships with flowcut as a data package."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from ..errors import FlowCutError
from .mini_weights import language_from_gguf, merge_adapters, tower_from_weights

MINI = "flowcut-mini"
"""The model's name on the command line."""

INSTALL = "pip install ./packages/flowcut-mini"

_PACKAGE = "flowcut_mini"
_CONVERSION = 1  # raised when the conversion changes, so that older cached checkpoints are not used
_NOTES = ("training.json", "LICENSE-SmolLM2")
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "MODEL_CARD.md",
)

Progress = Callable[[str, int, int], None]
"""Called with what is done next, the steps done and the steps in all."""


def load_mini(
    dtype: torch.dtype = torch.float32, *, progress: Progress | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The small real model that ships with flowcut, on the CPU, in evaluation mode.

    The first call converts the shipped files into a checkpoint below the cache folder, see :func:`mini_folder`.

    Args:
        dtype: of the weights.
        progress: see :data:`Progress`; by default a bar on stderr.

    Raises:
        FlowCutError: the data package is not installed.
    """
    folder = mini_folder(progress=progress)
    loader: Any = LlavaForConditionalGeneration
    processors: Any = AutoProcessor
    model = loader.from_pretrained(folder, dtype=dtype).eval()
    return model, processors.from_pretrained(folder, trust_remote_code=False)


def mini_folder(*, progress: Progress | None = None) -> Path:
    """The folder with flowcut-mini as a Hugging Face checkpoint; written where it is not there yet.

    It lies below the folder in ``FLOWCUT_CACHE``, else below ``flowcut`` in ``XDG_CACHE_HOME`` or ``~/.cache``, under
    a name that depends on the shipped files, see :func:`weights_key`.

    Raises:
        FlowCutError: the data package is not installed.
    """
    source = package_folder()
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    training = json.loads((source / "training.json").read_text(encoding="utf-8"))
    target = cache_folder() / f"{MINI}-{weights_key(manifest, training)}"
    if not target.is_dir():
        if progress is None:
            with_bar(lambda report: write_checkpoint(source, target, report))
        else:
            write_checkpoint(source, target, progress)
    return target


def weights_key(manifest: dict[str, str], training: dict[str, Any]) -> str:
    """What tells one flowcut-mini from another: two with the same key answer alike.

    Notes on how it was trained and licences do not count; of the training only the scale of the adapters does.

    Args:
        manifest: the SHA-256 of every shipped file.
        training: ``training.json``.
    """
    decisive = {name: digest for name, digest in manifest.items() if name not in _NOTES}
    described = json.dumps([decisive, training["alpha_over_rank"], _CONVERSION], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def mini_installed() -> bool:
    """Whether the data package with the weights is there."""
    return find_spec(_PACKAGE) is not None


def package_folder() -> Path:
    """Where the data package keeps its files.

    Raises:
        FlowCutError: it is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FlowCutError(
            f"{MINI}'s weights are not installed. Install them from flowcut's repository with `{INSTALL}`, or choose "
            "another model with --model."
        )
    folder = Path(spec.origin).parent
    if not (folder / "manifest.json").is_file():
        raise FlowCutError(
            f"{folder} holds no weights: it is the source of the data package, not the built one. Install it with "
            f"`{INSTALL}` (not with -e)."
        )
    return folder


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    given = os.environ.get("FLOWCUT_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flowcut"


def write_checkpoint(source: Path, target: Path, progress: Progress) -> None:
    """Convert the shipped files in ``source`` into a checkpoint in ``target``, which appears only when it is whole."""
    steps = ("vision tower", "language model", "adapters and projector", "writing")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        progress(steps[0], 0, len(steps))
        tower = tower_from_weights(load_file(source / "tower.safetensors")).state_dict()
        progress(steps[1], 1, len(steps))
        language = language_from_gguf(source / "language.gguf")
        progress(steps[2], 2, len(steps))
        training = json.loads((source / "training.json").read_text(encoding="utf-8"))
        scaling = float(training["alpha_over_rank"])
        merge_adapters(tower, load_file(source / "tower_adapters.safetensors"), scaling)
        merge_adapters(language, load_file(source / "adapters.safetensors"), scaling)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model: Any = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(tower)
        model.model.language_model.load_state_dict(language)
        projector = {name: value.float() for name, value in load_file(source / "projector.safetensors").items()}
        model.model.multi_modal_projector.load_state_dict(projector)
        model.tie_weights()
        progress(steps[3], 3, len(steps))
        model.to(torch.float16).save_pretrained(work)
        for name in _COPIED:
            shutil.copyfile(source / name, work / name)
        progress(steps[3], 4, len(steps))
        move_into_place(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def move_into_place(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``, unless another process was faster."""
    work.chmod(0o755)
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def with_bar(action: Callable[[Progress], None]) -> None:
    """Run ``action`` with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Preparing {MINI} (first start only)")

        def report(step: str, done: int, total: int) -> None:
            bar.update(task, description=f"Preparing {MINI}: {step}", completed=done, total=total)

        action(report)
