"""The scores of one layer, against the formulas written out and the recorded tensors."""

from __future__ import annotations

import golden
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowcut.algorithm import flow


def states(batch: int = 2, heads: int = 3, tokens: int = 7, size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, heads, tokens, size, generator=torch.Generator().manual_seed(seed))


def written_out(row: Tensor, others: Tensor, scale: float) -> Tensor:
    """mean over heads of softmax(row . others * scale), one image, one loop per head."""
    heads = [torch.softmax(torch.stack([row[h] @ k for k in others[h]]) * scale, 0) for h in range(len(others))]
    return torch.stack(heads).mean(0)


def test_relation_semantic_density_written_out() -> None:
    q, k, v = states(seed=1), states(seed=2), states(seed=3)
    for image in range(2):
        expected = written_out(q[image, :, 0], k[image], 0.5)[1:]
        torch.testing.assert_close(flow.relation(q, k, 0.5, prefix=1)[image], expected)
        expected = written_out(v[image, :, 0], v[image], 1.0)[1:]
        torch.testing.assert_close(flow.semantic(v, prefix=1)[image], expected)
        torch.testing.assert_close(flow.density(v, prefix=1)[image], v[image, :, 1:].mean(0).abs().sum(-1))


def test_mean_stands_in_for_a_missing_cls_token() -> None:
    q, k = states(seed=1), states(seed=2)
    expected = written_out(q[0].mean(dim=1), k[0], 0.5)
    torch.testing.assert_close(flow.relation(q, k, 0.5, prefix=0)[0], expected)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_padding_changes_nothing(prefix: int) -> None:
    q, k, v = (states(tokens=12, seed=seed) for seed in (1, 2, 3))
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 8:] = False
    for function in (
        lambda length, mask: flow.relation(q[1:, :, :length], k[1:, :, :length], 0.5, prefix, mask),
        lambda length, mask: flow.semantic(v[1:, :, :length], prefix, 0.5, mask),
    ):
        padded = function(12, valid[1:])
        torch.testing.assert_close(padded[:, : 8 - prefix], function(8, None))
        assert (padded[:, 8 - prefix :] == 0).all()


def test_share_ignores_padding() -> None:
    strength = torch.tensor([[1.0, 3.0, 100.0]])
    valid = torch.tensor([[True, True, False]])
    assert flow.share(strength, valid).tolist() == [[0.25, 0.75, 0.0]]


def test_half_precision_is_scored_in_float32() -> None:
    q, k = states(seed=1).half(), states(seed=2).half()
    scores = flow.relation(q, k, 0.5, prefix=1)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, flow.relation(q.float(), k.float(), 0.5, prefix=1))


def test_accumulate() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    assert flow.accumulate(None, first, 0.5) is first
    assert flow.accumulate(first, second, 0.25).tolist() == [[2.5, 5.0]]


@pytest.mark.parametrize("case", ["llava15_clip12", "llava15_clip9"])
def test_score_and_history_reproduce_the_reference(case: str) -> None:
    tensors = load_file(golden.FOLDER / case / "tensors.safetensors")
    history = None
    for layer in range(2):
        name = f"t8.b3.vit.L{layer:02d}"
        relation, semantic = tensors[f"{name}.cls_attn"], tensors[f"{name}.semantic_attn"]
        score = flow.score(flow.share(relation), flow.share(semantic), tensors[f"{name}.value_l1"])
        torch.testing.assert_close(score, tensors[f"{name}.score"], rtol=1e-5, atol=1e-7)
        if history is None or history.shape == score.shape:
            history = flow.accumulate(history, score, 0.5)
            torch.testing.assert_close(history, tensors[f"{name}.cum_before_prune"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("length", [7, 5])
def test_layers_compared_together_score_as_each_by_its_formula(prefix: int, length: int) -> None:
    layers = [[states(seed=3 * layer + part) for part in range(3)] for layer in range(2)]
    valid = None
    if length < 7:
        valid = torch.arange(7).expand(2, 7) < length
    scores, relation = flow.compare([flow.glimpse(*layer, 0.5, prefix, valid) for layer in layers], prefix, valid)
    assert scores.shape == (2, 2, 7 - prefix)
    for number, layer in enumerate(layers):
        query, key, value = (part[:, :, :length] for part in layer)
        own = flow.share(flow.relation(query, key, 0.5, prefix))
        meaning = flow.share(flow.semantic(value, prefix))
        expected = flow.score(own, meaning, flow.density(value, prefix))
        torch.testing.assert_close(scores[:, number, : length - prefix], expected)
    torch.testing.assert_close(relation[:, : length - prefix], own)
    assert not relation[:, length - prefix :].any()


def test_terms_that_are_left_out_are_left_out() -> None:
    q, k, v = states(seed=1), states(seed=2), states(seed=3)
    own = flow.share(flow.relation(q, k, 0.5, 1))
    alone = flow.glimpse(q, k, v, 0.5, 1, semantic_scale=None, with_density=False)
    torch.testing.assert_close(flow.compare([alone], 1)[0][:, 0], own)
    dense = flow.glimpse(q, k, v, 0.5, 1, semantic_scale=None)
    torch.testing.assert_close(flow.compare([dense], 1)[0][:, 0], own * flow.density(v, 1))
