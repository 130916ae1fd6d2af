"""Attention received, against the full map."""

from __future__ import annotations

import torch

from flowcut.methods.saliency import attention_received


def test_attention_received() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 7, 4, generator=generator), torch.randn(2, 3, 7, 4, generator=generator)
    full = (query @ key.mT * 0.5).softmax(dim=-1).mean(dim=(1, 2))
    torch.testing.assert_close(attention_received(query, key, 0.5), full)
    valid = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    short = (query[1:, :, :5] @ key[1:, :, :5].mT * 0.5).softmax(dim=-1).mean(dim=(1, 2))
    padded = attention_received(query, key, 0.5, valid)
    torch.testing.assert_close(padded[:1], full[:1])
    torch.testing.assert_close(padded[1:, :5], short)
    assert padded[1, 5:].tolist() == [0.0, 0.0]
