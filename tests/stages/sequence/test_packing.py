"""Samples that share a row: told apart as transformers does, refused where a cut would mix them up."""

from __future__ import annotations

import pytest
import torch

from flowcut import CDPruner, FlowCut, FlowCutError
from flowcut.algorithm.columns import keep_columns
from flowcut.stages.sequence.packing import check_lengths, check_packed, starts_of_samples

ROW = torch.tensor([[0, 1, 2, 0, 1]])
EVEN = keep_columns(torch.tensor([[True, False, True, True, True]]), None)


def test_a_sample_begins_where_positions_begin_again() -> None:
    starts = starts_of_samples({"position_ids": ROW})
    assert starts is not None and starts.tolist() == [[False, False, False, True, False]]
    in_front_of_axes = starts_of_samples({"position_ids": torch.stack([ROW, ROW * 0, ROW * 0, ROW * 0])})
    assert in_front_of_axes is not None and torch.equal(in_front_of_axes, starts)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"position_ids": torch.arange(5)[None]},
        {"position_ids": ROW, "attention_mask": torch.ones(1, 5)},
        {"position_ids": torch.stack([ROW] * 3)},
    ],
    ids=["no positions", "one sample", "a mask", "axes alone"],
)
def test_no_row_is_shared(call: dict[str, torch.Tensor]) -> None:
    assert starts_of_samples(call) is None


def test_what_would_mix_samples_up_is_refused() -> None:
    compact = FlowCut(target_num=4)
    check_packed(compact, EVEN, False, False)
    with pytest.raises(FlowCutError, match="inside the language model"):
        check_packed(compact, EVEN, True, False)
    with pytest.raises(FlowCutError, match="reads the text"):
        check_packed(CDPruner(target_num=4), EVEN, False, False)
    gaps = FlowCut(target_num=4, positions="original")
    with pytest.raises(FlowCutError, match="leaves gaps"):
        check_packed(gaps, EVEN, False, False)
    check_packed(gaps, EVEN, False, True)
    uneven = keep_columns(torch.tensor([[True, False, True], [True, True, True]]), None)
    with pytest.raises(FlowCutError, match="different number of columns"):
        check_packed(compact, uneven, False, False)


def test_lengths_in_uncut_columns_are_refused() -> None:
    check_lengths({"cu_seq_lens_q": None})
    with pytest.raises(FlowCutError, match="cu_seq_lens_q"):
        check_lengths({"cu_seq_lens_q": torch.tensor([0, 3, 5])})
