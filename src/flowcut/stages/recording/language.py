"""The language model reading its prompts, looked at: what the last prompt token attends to, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.ranking import logits_of_last
from ...methods.views import DecoderView
from ...trace import LanguageFlow
from ..decoder.decoder_pass import layer_kind


class LanguageRecording:
    """One call of the language model with prompts that hold visual tokens.

    Args:
        config: of the language model.
        places: boolean ``[B, S]``, the visual tokens, by modality.
        real: ``[B, cached + S]``, false for padding.
    """

    def __init__(self, config: Any, places: dict[str, Tensor], real: Tensor) -> None:
        self.config = config
        self.places = places
        self.real = real
        self.columns = next(iter(places.values())).shape[1]
        own = torch.arange(self.columns, device=real.device)
        self.last = own.expand(len(real), -1).masked_fill(~real[:, -self.columns :], -1).argmax(dim=1)
        self.attention: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Look at a decoder layer's q and k; its mask stays what it is."""
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            self.attention[layer] = self._of_last(layer, query, key, scaling, mask)
        return mask

    def narrowing(self, layer: int) -> None:
        """Every token goes on."""

    def _of_last(self, layer: int, query: Tensor, key: Tensor, scaling: float, mask: Any) -> Tensor:
        """Attention of every sample's last prompt token to this call's columns, mean over heads, ``[B, S]``."""
        attended = self.real.shape[1]
        # A static cache hands out all that it reserved.
        key = key[:, :, :attended]
        real, last = self.real.to(query.device), self.last.to(query.device)
        view = DecoderView(layer, query, key, key, scaling, real.long(), real, last, real.long(), ())
        logits = logits_of_last(view)
        cap = getattr(self.config, "attn_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        if isinstance(mask, Tensor) and mask.dim() == 4:
            row = mask.expand(len(query), -1, -1, -1)[torch.arange(len(query)), :, last][..., :attended]
            logits = logits.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else logits + row.float()
        else:
            logits = logits.masked_fill(~self._seen(layer, real, last)[:, None], float("-inf"))
        return logits.softmax(dim=-1).mean(dim=1)[:, attended - self.columns :]

    def _seen(self, layer: int, real: Tensor, last: Tensor) -> Tensor:
        """The columns that a causal layer shows to the last token, where no mask says so, ``[B, cached + S]``."""
        column = torch.arange(real.shape[1], device=real.device)
        own = last[:, None] + real.shape[1] - self.columns
        seen = real & (column <= own)
        if layer_kind(self.config, layer) == "sliding_attention":
            seen &= column > own - self.config.sliding_window
        return seen

    def finish(self, modality: str, counts: list[int]) -> list[LanguageFlow]:
        """What was seen, for every image of a modality; the prompts hold so many visual tokens of each, in order."""
        layers = tuple(sorted(self.attention))
        places = self.places[modality]
        per_layer = [self.attention[layer].cpu()[places.cpu()] for layer in layers]
        return [LanguageFlow(layers, part) for part in torch.split(torch.stack(per_layer), counts, dim=1)]
