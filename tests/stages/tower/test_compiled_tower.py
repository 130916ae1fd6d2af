"""A tower whose schedule is fixed is one graph, for torch.compile and for CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch._dynamo.testing import CompileCounter

from flowcut import FlowCut, attach
from flowcut.algorithm.calibration import Calibration
from flowcut.methods.fixed_schedule import write_calibration

METHOD = FlowCut(target_num=9, schedule=(10, 9, 8))


@pytest.mark.parametrize("from_file", [False, True])
@torch.no_grad()
def test_a_fixed_schedule_s_tower_compiles_whole(from_file: bool, tmp_path: Path) -> None:
    torch.compiler.reset()
    method = METHOD
    if from_file:
        file = tmp_path / "schedule.json"
        write_calibration(file, Calibration(7, 2, (0.1, 0.9), ((0.9, 0.8), (0.95, 0.9))), "tiny", 3)
        method = FlowCut(target_num=9, schedule=str(file))
    model = tiny.tiny_model()
    counter = CompileCounter()
    pictures = [tiny.pictures(2, seed=seed) for seed in range(3)]
    with attach(model, method):
        eager = [model.model.vision_tower(pixels) for pixels in pictures]
        compiled = torch.compile(model.model.vision_tower, fullgraph=True, backend=counter)
        found = [compiled(pixels) for pixels in pictures]
    # Torch compiles the hooks in front of the tower, its forward and the hooks behind it; none breaks, none again.
    assert counter.frame_count == 3
    for ours, theirs in zip(found, eager, strict=True):
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        for one, other in zip(ours.flowcut_images, theirs.flowcut_images, strict=True):
            assert torch.equal(one.kept, other.kept) and one.tokens_after_layer == other.tokens_after_layer
    torch.compiler.reset()


@torch.no_grad()
def test_a_tower_compiled_in_place_serves_the_whole_model() -> None:
    torch.compiler.reset()
    model = tiny.tiny_model()
    inputs = {**tiny.batch([tiny.prompt()] * 2), "pixel_values": tiny.pictures(2)}
    with attach(model, METHOD) as handle:
        expected = model(**inputs).logits
        kept = handle.trace.images[1].kept
        model.model.vision_tower.compile(fullgraph=True, backend="eager")
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(handle.trace.images[1].kept, kept)
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_a_fixed_schedule_s_tower_is_captured_in_a_cuda_graph() -> None:
    model = tiny.tiny_model().cuda()
    pictures = [tiny.pictures(2, seed=seed).cuda() for seed in range(2)]
    still = pictures[0].clone()
    with attach(model, METHOD):
        tower = model.model.vision_tower
        expected = [tower(pixels).last_hidden_state for pixels in pictures]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                tower(still)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = tower(still).last_hidden_state
    for pixels, states in zip(pictures, expected, strict=True):
        still.copy_(pixels)
        graph.replay()
        torch.testing.assert_close(captured, states)
