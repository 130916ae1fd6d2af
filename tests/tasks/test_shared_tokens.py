"""Tokens that are alike are computed once, and every token still gets its own output."""

from __future__ import annotations

import tiny
import torch
from torch import nn

from flowcut.tasks.shared_tokens import computed_once, distinct_tokens, tokenwise


def test_a_token_stands_for_its_equals_and_for_padding() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    distinct, place = distinct_tokens([4, 4, 7], 2, mask)
    stands_for = distinct[place].view(3, 5).tolist()
    assert stands_for == [[1, 1, 2, 3, 4], [1, 2, 7, 8, 9], [1, 1, 12, 13, 14]]


def test_the_parts_that_work_on_single_tokens() -> None:
    layer = tiny.tiny_model().model.language_model.layers[0]
    names = {name for name, module in layer.named_modules() if module in tokenwise(layer)}
    attention = {f"self_attn.{part}_proj" for part in "qkvo"}
    assert names == attention | {"mlp", "input_layernorm", "post_attention_layernorm"}


def test_a_layer_gives_the_same_with_fewer_rows() -> None:
    model = tiny.tiny_model().model.language_model
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9], [5, 6, 7, 10, 11, 12], [4, 6, 7, 10, 11, 12]])
    seen: list[int] = []
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    whole = model(input_ids=tokens, attention_mask=mask, position_ids=places).last_hidden_state
    model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    with computed_once(model.layers[:2], [0, 0, 1], 3, mask):
        once = model(input_ids=tokens, attention_mask=mask, position_ids=places).last_hidden_state
        model(input_ids=tokens[:, :4])
    torch.testing.assert_close(once[mask.bool()], whole[mask.bool()])
    assert seen == [5 + 3 + 6, 4]  # the second sample adds three tokens; the shorter batch is left alone
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear))
