"""What is asked of which model, and how: all that the answers to a question file depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..checkpoints.loading import choose_device, choose_dtype
from ..checkpoints.mini import MINI, mini_folder
from ..methods import Method
from ..methods.naming import describe
from .parts import Identity
from .prompts import VICUNA
from .questions import NEW_TOKENS, QuestionFile

UNCUT = "uncut"


@dataclass(frozen=True)
class Job:
    """What is asked of whom.

    Attributes:
        questions: the file.
        output: the answer file.
        model: flowcut-mini, a folder or a hub id.
        images: the folder with the pictures.
        method: what cuts; ``None`` for the model as it is.
        mode: see :data:`~flowcut.llava_files.prompts.MODES`.
        max_new_tokens: longest answer; ``None`` for that of LLaVA's script for the file.
        batch_size: questions in one pass; it does not change the answers.
        processes: how many share the questions; each on a GPU of its own, as far as there are any.
        device, dtype: by name; ``None`` for the best one here.
    """

    questions: QuestionFile
    output: Path
    model: str
    images: Path | None = None
    method: Method | None = None
    mode: str = VICUNA
    max_new_tokens: int | None = None
    batch_size: int = 1
    processes: int = 1
    device: str | None = None
    dtype: str | None = None

    @property
    def new_tokens(self) -> int:
        """Longest answer."""
        return NEW_TOKENS[self.questions.path.suffix] if self.max_new_tokens is None else self.max_new_tokens

    def identity(self) -> Identity:
        """What the answers depend on."""
        device = choose_device(self.device)
        return {
            "flowcut": __version__,
            "model": mini_folder().name if self.model == MINI else self.model,
            "model_id": name_of(self.model),
            "method": UNCUT if self.method is None else describe(self.method, budget=True),
            "questions": self.questions.digest(),
            "language": self.questions.language,
            "all_rounds": self.questions.all_rounds,
            "limit": self.questions.limit,
            "chunks": [self.questions.chunk, self.questions.chunks],
            "conversation": self.mode,
            "max_new_tokens": self.new_tokens,
            "device": device.type,
            "dtype": str(choose_dtype(self.dtype, device)).removeprefix("torch."),
        }


def name_of(model: str) -> str:
    """A model's name as LLaVA's scripts take it from its path."""
    *_, folder, name = ["", *model.strip("/").split("/")]
    return f"{folder}_{name}" if name.startswith("checkpoint-") else name
