"""Deliberate faults, each one line of the package made wrong, and the tests that must notice.

``python -m tests.mutations`` puts each into a copy of the source and runs its tests, which must fail.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong, in words.
        file: below ``src/flowcut``.
        old, new: what stands there, and what takes its place.
        tests: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FLOW = ("tests/algorithm/test_flow.py",)
SCHEDULE = ("tests/algorithm/test_schedule.py",)
COLUMNS = ("tests/algorithm/test_columns.py",)
GATE = ("tests/stages/sequence/test_gate.py",)
TWICE = ("tests/fuzz/test_turns.py", "-k", "twice and padding")
STEPS = ("tests/test_indistinguishable.py", "-k", "step_by_step and (clip or llava_next)")
RAGGED = ("tests/test_training.py", "-k", "ragged_batch")
PACKED = ("tests/models/test_qwen2_vl.py", "-k", "single_runs or one_another")
RELEASED = ("tests/models/test_llava_parity.py",)

FAULTS = (
    Fault(
        "positions are off by one behind the first cut token",
        "algorithm/positions.py",
        "removed = dropped.cumsum(dim=1)\n",
        "removed = (dropped.cumsum(dim=1) - 1).clamp(min=0)\n",
        COLUMNS,
    ),
    Fault(
        "positions forget what earlier turns lost",
        "algorithm/positions.py",
        "removed = removed + removed_before[:, None]",
        "pass",
        GATE,
    ),
    Fault(
        "the mean over heads is taken in front of the softmax",
        "algorithm/flow.py",
        "weights = logits.softmax(dim=-1).mean(dim=2)[..., prefix:]",
        "weights = logits.mean(dim=2).softmax(dim=-1)[..., prefix:]",
        FLOW,
    ),
    Fault(
        "the last patch stands for the CLS token",
        "algorithm/flow.py",
        "return states[:, :, :1].float()",
        "return states[:, :, -1:].float()",
        FLOW,
    ),
    Fault(
        "the history of a layer's scores is forgotten",
        "algorithm/flow.py",
        "return current if history is None else torch.lerp(history, current, 1.0 - weight)",
        "return current",
        FLOW,
    ),
    Fault(
        "padding takes part in the softmax of a ragged batch",
        "algorithm/flow.py",
        'logits = logits.masked_fill(~valid[:, None, None, :], float("-inf"))',
        "pass",
        RAGGED,
    ),
    Fault(
        "the last cut is one layer late",
        "algorithm/schedule.py",
        "return feature_layer - 2 - layer",
        "return feature_layer - 1 - layer",
        SCHEDULE,
    ),
    Fault("cut counts are rounded down", "algorithm/schedule.py", "wanted = np.rint(", "wanted = np.floor(", SCHEDULE),
    Fault(
        "the entropy's ratio is not squared",
        "algorithm/schedule.py",
        "(1 - ratio**2))",
        "(1 - ratio))",
        SCHEDULE,
    ),
    Fault(
        "kept tokens come in the order of their scores",
        "algorithm/selection.py",
        "return best.sort(dim=-1).values\n",
        "return best\n",
        ("tests/algorithm/test_selection.py",),
    ),
    Fault(
        "the CLS token is read as the first patch",
        "algorithm/selection.py",
        "nn.functional.pad(index + 1, (1, 0))",
        "nn.functional.pad(index, (1, 0))",
        RELEASED,
    ),
    Fault(
        "a share of the tokens is rounded down",
        "methods/base.py",
        "round(self.retain_ratio * available)",
        "int(self.retain_ratio * available)",
        ("tests/test_numbers.py", "-k", "share"),
    ),
    Fault(
        "equal tokens are taken in any order",
        "algorithm/selection.py",
        "scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]",
        "scores.topk(count, dim=-1).indices",
        ("tests/test_numbers.py", "-k", "equal"),
    ),
    Fault(
        "DivPrune takes tokens twice",
        "methods/divprune.py",
        'distance.fill_diagonal_(float("-inf"))',
        "distance.fill_diagonal_(0.0)",
        ("tests/methods/test_divprune.py",),
    ),
    Fault(
        "VisionZip's contextual tokens are rounded down",
        "methods/visionzip.py",
        "return round(tokens * share)",
        "return int(tokens * share)",
        ("tests/methods/test_visionzip.py",),
    ),
    Fault(
        "FastV's last token attends to padding",
        "methods/ranking.py",
        "unseen |= ~view.real",
        "pass",
        ("tests/methods/test_decoder_methods.py", "-k", "single_runs"),
    ),
    Fault(
        "scores are computed in autocast's half precision",
        "stages/tower/batched_pass.py",
        "with torch.no_grad(), torch.autocast(query.device.type, enabled=False):\n                view",
        "with torch.no_grad():\n                view",
        ("tests/test_numbers.py", "-k", "under_autocast"),
    ),
    Fault(
        "a ragged batch loses its mask behind a cut",
        "stages/tower/batched_pass.py",
        "if min(self.counts) == width:\n            self.valid",
        "if True:\n            self.valid",
        RAGGED,
    ),
    Fault(
        "the second cut of a tower forgets the first",
        "stages/tower/batched_pass.py",
        "self.alive = index if self.alive is None else compose(",
        "self.alive = index if self.alive is not None else compose(index if self.alive is None else ",
        RELEASED,
    ),
    Fault(
        "kept patches of a packed tower turn by the places of the first ones",
        "stages/tower/packed_pass.py",
        "places = alive if self.arrangement is None",
        "places = torch.arange(len(alive)) if self.arrangement is None",
        PACKED,
    ),
    Fault(
        "an image of a packed tower sees its neighbour behind a cut",
        "stages/tower/packed_pass.py",
        "bounds = torch.searchsorted(alive, whole.to(alive)).to(whole)\n",
        "bounds = torch.tensor([0, len(alive)], device=whole.device).to(whole)\n",
        PACKED,
    ),
    Fault(
        "DeepStack's features go to the first visual tokens that are left",
        "stages/decoder/layers.py",
        "features = features[number[visual].to(features.device)]",
        "features = features[: int(visual.sum())]",
        ("tests/models/test_qwen3_vl.py", "-k", "second_cut"),
    ),
    Fault(
        "a picture of a later turn is ranked by the first columns of the cache",
        "stages/decoder/decoder_pass.py",
        "return slice(key.shape[2] - columns, None)",
        "return slice(0, columns)",
        ("tests/fuzz/test_turns.py", "-k", "ranked_by_its_own"),
    ),
    Fault(
        "the layer that cuts already counts as cut",
        "stages/decoder/decoder_pass.py",
        "number = bisect_left(self.layers, layer)\n",
        "number = bisect_left(self.layers, layer + 1)\n",
        TWICE,
    ),
    Fault(
        "beams share the wrong pictures",
        "stages/sequence/generation.py",
        "for image in [number for number, _ in sample] * expand_size]",
        "for image in [number for number, _ in sample for _ in range(expand_size)]]",
        GATE,
    ),
    Fault(
        "a step's positions are those of the uncut prompt",
        "stages/sequence/step.py",
        "positions = positions - removed[..., None]",
        "positions = positions - 0 * removed[..., None]",
        STEPS,
    ),
    Fault(
        "padding between two turns is taken for tokens",
        "trace/cache_state.py",
        "return replace(later, mask=torch.cat([self.attention_mask, mask.to(self.mask)], dim=1), full=False)",
        "return replace(later, mask=self._reaching(later.cached, ahead=ROOM))",
        ("tests/fuzz/test_turns.py", "-k", "decoder and (padding or later)"),
    ),
    Fault(
        "a cropped cache stands for its old length",
        "trace/cache_state.py",
        "uncut_length=self.uncut_length - excess",
        "uncut_length=self.uncut_length",
        ("tests/test_generation_on_cuts.py", "-k", "cropped and clip"),
    ),
    Fault(
        "a cache forgets what its first turn lost",
        "trace/sequence.py",
        "removed = self.before.removed + self.removed",
        "removed = self.removed",
        GATE,
    ),
    Fault(
        "a batch with padding is said to have none",
        "trace/sequence.py",
        "            full=full and before.full,",
        "            full=True,",
        ("tests/fuzz/test_turns.py", "-k", "compact and padding"),
    ),
    Fault(
        "the loss counts cut columns",
        "stages/sequence/outputs.py",
        "return original(logits, cut.take(labels, ignored), *args, **kwargs)",
        "return original(logits, cut.take(labels.roll(1, 1), ignored), *args, **kwargs)",
        ("tests/test_indistinguishable.py", "-k", "clip and loss"),
    ),
    Fault(
        "hidden states of the layer that cuts are laid out as those in front of it",
        "stages/sequence/outputs.py",
        "places[bisect_left(self.cuts, layer)]",
        "places[max(0, bisect_left(self.cuts, layer - 1))]",
        ("tests/test_indistinguishable.py", "-k", "decoder and clip and both"),
    ),
    Fault(
        "observed attention stays on a detached model",
        "stages/observing/stage.py",
        "            observation.close()\n",
        "            del observation\n",
        ("tests/test_attaching.py",),
    ),
    Fault(
        "another attention implementation is not followed",
        "stages/observing/attention.py",
        'if (self.config._attn_implementation or "eager") != self.name:',
        "if False:",
        ("tests/test_attaching.py",),
    ),
    Fault(
        "an interrupted call leaves its pass at work",
        "stages/sequence/gate.py",
        "if not isinstance(interrupt, Exception):\n                self._close(module)",
        "if not isinstance(interrupt, Exception):\n                pass",
        ("tests/stages/sequence/test_outputs.py",),
    ),
    Fault(
        "tokens cut behind the projector keep their neighbours' features",
        "stages/projector/choosing.py",
        "return tuple(tokens[stays.to(tokens.device)] for",
        "return tuple(tokens[stays.to(tokens.device)].roll(1, 0) for",
        ("tests/test_indistinguishable.py", "-k", "second_computation and projector and clip"),
    ),
)
