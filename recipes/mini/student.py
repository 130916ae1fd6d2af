"""The trainable model: projector, and adapters inside the frozen language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from .align import load_projector
from .dialogue import Packed, Packer
from .guidance import guidance
from .precision import fast_dtype
from .projector import PROJECTOR, new_projector
from .tower import Upper
from .workspace import Workspace

ADAPTERS = "adapters.safetensors"
"""The file that holds them, in every folder with a trained language model."""

RANK = 8
LOOKING_RANK = 32
"""Rank of queries and keys in the layers that find things: 140 nouns don't fit into eight dimensions."""

LOOKING = r"layers\.([2-9]|1[0-8])\.self_attn\.[qk]_proj"
"""The weights that get it."""

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter_config() -> LoraConfig:
    """What is adapted, and how strongly."""
    return LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        rank_pattern={LOOKING: LOOKING_RANK},
        alpha_pattern={LOOKING: 2 * LOOKING_RANK},
        target_modules=ADAPTED,
        task_type="CAUSAL_LM",
    )


class Student(nn.Module):
    """SmolLM2 in `fast_dtype` with LoRA adapters, and the projector in float32.

    Attention runs in its plain form: on CPUs it beats the fused one when a dense mask is given.

    Args:
        workspace: where the converted language model lies.
    """

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        language = AutoModelForCausalLM.from_pretrained(
            workspace.language, dtype=fast_dtype(), attn_implementation="eager"
        )
        self.language = get_peft_model(language, adapter_config(), autocast_adapter_dtype=False)
        self.upper = Upper(workspace).requires_grad_(False)
        self.projector = new_projector(torch.randn(8, 384))
        self.packer = Packer(AutoTokenizer.from_pretrained(workspace.language))
        self.embeddings = language.get_input_embeddings()
        self.decoder = language.model
        self.head = language.lm_head

    @torch.no_grad()
    def see(self, stem: Tensor) -> Tensor:
        """[576, 384] tower features from a [577, 384] stem; the tower isn't trained with dialogues."""
        return self.upper(stem[None])[0]

    def logits(self, packed: Packed, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Scores at the places that predict an answer's tokens.

        Args:
            packed: the dialogue.
            projected: [n, 576] the picture's projected patches, n as packed.

        Returns:
            logits [m, vocabulary] and the tokens wanted there, [m].
        """
        logits, wanted, _ = self._run(packed, projected, attentions=False)
        return logits, wanted

    def _run(self, packed: Packed, projected: Tensor, *, attentions: bool) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        embedded = self.embeddings(packed.ids)
        embedded = torch.cat(
            [embedded[: packed.visual.start], projected.to(embedded.dtype), embedded[packed.visual.stop :]]
        )
        output = self.decoder(
            inputs_embeds=embedded[None],
            attention_mask=packed.mask(embedded.dtype),
            position_ids=packed.positions[None],
            use_cache=False,
            output_attentions=attentions,
        )
        asked = packed.labels != -100
        return self.head(output.last_hidden_state[0][asked]), packed.labels[asked], output.attentions or ()

    def loss(
        self, packed: Packed, projected: Tensor, asked: Tensor, guided: float, weights: Sequence[float]
    ) -> tuple[Tensor, dict[str, list[bool]]]:
        """Weighted mean over questions of the answer's cross entropy, and which answers greedy decoding gets right.

        Args:
            packed: the dialogue.
            projected: [n, 576] the picture's projected patches.
            asked: [questions, n] the patches that each question is about.
            guided: weight of the loss that shows some heads these patches; 0 for none.
            weights: how much each question weighs.
        """
        logits, wanted, attentions = self._run(packed, projected, attentions=guided > 0)
        token_loss = cross_entropy(logits.float(), wanted, reduction="none")
        branch = packed.branch[packed.labels != -100]
        weight = torch.tensor([0.0, *weights])
        share = (weight / torch.bincount(branch, minlength=len(weight)).clamp(min=1))[branch]
        loss = (token_loss * share).sum() / weight.sum()
        if guided > 0:
            loss = loss + guided * guidance(attentions, packed.looks, packed.visual, asked)
        return loss, answered(packed, logits.argmax(dim=-1) == wanted, branch)

    def adapters(self) -> list[nn.Parameter]:
        """The adapters' weights."""
        return [weight for weight in self.language.parameters() if weight.requires_grad]

    def save(self, folder: Path) -> None:
        """Write projector.safetensors, adapters.safetensors and tower_adapters.safetensors, in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in (
            (PROJECTOR, self.projector.state_dict()),
            (ADAPTERS, get_peft_model_state_dict(self.language)),
        ):
            halves = {key: value.detach().to(torch.float16).contiguous() for key, value in state.items()}
            save_file(halves, folder / name)
        self.upper.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, or what `adapt` did, which has no adapters of the language model."""
        self.projector = load_projector(folder)
        self.upper.load(folder)
        if (folder / ADAPTERS).exists():
            set_peft_model_state_dict(self.language, load_file(folder / ADAPTERS))


def answered(packed: Packed, right: Tensor, branch: Tensor) -> dict[str, list[bool]]:
    """For each task, question by question, whether every token of the answer was the likeliest one.

    That is whether greedy decoding gives exactly the answer.

    Args:
        packed: the dialogue.
        right: [m] whether each predicted token is right.
        branch: [m] the question's number, from 1, of each of them.
    """
    wrong = torch.bincount(branch, weights=(~right).double(), minlength=len(packed.questions) + 1)[1:]
    results: dict[str, list[bool]] = defaultdict(list)
    for question, mistakes in zip(packed.questions, wrong.tolist(), strict=True):
        results[question.task].append(mistakes == 0)
    return dict(results)
