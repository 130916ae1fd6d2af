"""FlowCut+: the cut in the middle, the choice at its end, the frames of a clip, and what the question changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from shipped import require_mini
from torch import Tensor

from flowcut import FlowCutPlus, attach, make_method
from flowcut.algorithm.coverage import largest_coverage
from flowcut.algorithm.determinant import centred, largest_determinant
from flowcut.checkpoints import mini
from flowcut.checkpoints.loading import load_model
from flowcut.inputs.prompting import many_inputs
from flowcut.methods.flowcut_plus import RelevantPolicy
from flowcut.methods.flowcut_plus_choice import (
    ANCHORS,
    chosen,
    comparable,
    competing,
    halfway,
    merged_into,
    novelty,
    question_relevance,
)
from flowcut.methods.views import ProjectedView

TARGET = 9
PICTURES = Path(__file__).parents[2] / "examples" / "pictures"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def traces_of(model: Any, method: FlowCutPlus) -> Any:
    with attach(model, method), torch.no_grad():
        return model.get_image_features(tiny.pictures(3)).flowcut_images


def test_half_of_what_has_to_go_goes_in_the_middle() -> None:
    # 36 patches and CLS; 6 of its layers are cut after, the last one from its output.
    for early, before in (("repeated", 3), ("flow", 3), ("merged", 2)):
        for trace in traces_of(tiny.tiny_model(), FlowCutPlus(target_num=TARGET, early=early)):
            assert trace.tokens_after_layer[:6] == [37] * before + [23] * (6 - before)
            assert trace.tokens_after_layer[6] == TARGET + 1


def test_every_patch_is_part_of_what_it_is_most_like() -> None:
    features = drawn(2, 8, 5)
    index = torch.tensor([[0, 3, 4, 6], [1, 4, 0, 0]])
    counts = (4, 2)
    weights, size, bias = merged_into(comparable(features, False), index, counts)
    assert weights[1, 2:].count_nonzero() == 0
    assert torch.equal(size, weights.count_nonzero(dim=2).float()) and torch.equal(bias, size.clamp(min=1).log())
    for row, count in enumerate(counts):
        kept = index[row, :count].tolist()
        for place in range(8):
            likeness = [float(torch.cosine_similarity(features[row, place], features[row, one], dim=0)) for one in kept]
            own = kept.index(place) if place in kept else likeness.index(max(likeness))
            assert weights[row, :, place].nonzero().flatten().tolist() == [own]


def test_what_is_merged_counts_in_attention_as_often_as_it_stands_for() -> None:
    model = tiny.tiny_model()
    method = FlowCutPlus(target_num=TARGET, relevance="text")
    for trace in traces_of(model, method):
        (tile,) = trace.tiles
        assert tile.merged is not None and tile.handed_on is not None
        sizes = tile.merged.sum(dim=1).float()
        assert torch.equal(tile.handed_on[:, 1], sizes) and int(sizes.sum()) == 36
        assert bool((sizes > 1).any())


@torch.no_grad()
def test_copies_that_are_merged_change_nothing() -> None:
    """Attention to a token that counts twice is attention to two that are equal."""
    model = tiny.tiny_model()
    tower = model.model.vision_tower
    tower.embeddings.position_embedding.weight.zero_()
    patch = tower.config.patch_size
    side = tiny.pictures(1).shape[-1] // patch
    # Two kinds of patches in turns, so that every fourth patch has both.
    kinds = drawn(2, 3, patch, patch)
    places = torch.arange(side * side) // ANCHORS % 2
    tiles = kinds[places].reshape(side, side, 3, patch, patch)
    picture = tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, side * patch, side * patch)
    whole = model.get_image_features(picture).pooler_output[0]
    with attach(model, FlowCutPlus(target_num=TARGET, relevance="text")):
        output = model.get_image_features(picture)
    kept = output.flowcut_images[0].kept
    torch.testing.assert_close(output.pooler_output[0], whole[kept], rtol=1e-4, atol=1e-5)


def test_without_the_early_cut_the_choice_is_that_of_the_uncut_tower() -> None:
    model = tiny.tiny_model()
    with torch.no_grad():
        states = model.model.vision_tower(tiny.pictures(3), output_hidden_states=True).hidden_states[-2][:, 1:]
    for diversity, centre in (("coverage", False), ("coverage", True), ("determinant", True)):
        method = FlowCutPlus(target_num=TARGET, early="none", quality=0.0, diversity=diversity, centre=centre)
        greedy = largest_coverage if diversity == "coverage" else largest_determinant
        expected = greedy(centred(states) if centre else states, torch.ones(3, 36), (TARGET,) * 3)
        assert [trace.kept.tolist() for trace in traces_of(model, method)] == expected.tolist()


def test_without_difference_the_best_by_flow_stay() -> None:
    model = tiny.tiny_model()
    plain = FlowCutPlus(target_num=TARGET, early="none", diversity="none")
    other = FlowCutPlus(target_num=TARGET, early="none", diversity="none", history=0.0)
    assert [trace.kept.tolist() for trace in traces_of(model, plain)] != [
        trace.kept.tolist() for trace in traces_of(model, other)
    ]
    strength = drawn(2, 12).exp()
    kept = chosen(plain, drawn(2, 12, 4, seed=1), strength, (3, 5), (12, 12))
    assert kept.index[0, :3].tolist() == strength[0].topk(3).indices.sort().values.tolist()
    assert kept.index[1].tolist() == strength[1].topk(5).indices.sort().values.tolist()


@pytest.mark.parametrize("tokens", [7, 8])
def test_what_is_unlike_every_patch_that_stays_scores_most(tokens: int) -> None:
    features, protection = drawn(1, tokens, 5), drawn(1, tokens, seed=1).exp()
    scores = novelty(comparable(features, False), protection, 1.0)[0]
    assert torch.isinf(scores[::ANCHORS]).all()
    for place in range(tokens):
        if place % ANCHORS:
            cosines = [torch.cosine_similarity(features[0, place], one, dim=0) for one in features[0, ::ANCHORS]]
            expected = (1 - max(map(float, cosines))) * float(protection[0, place])
            assert float(scores[place]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_cut_in_the_middle_never_needs_a_patch_that_always_stays() -> None:
    for patches in range(2, 40):
        for target in range(1, patches + 1):
            left = halfway(patches, target)
            assert target <= left <= patches and patches - left <= patches - len(range(0, patches, ANCHORS))


def test_rows_that_keep_everything_and_rows_that_do_not() -> None:
    states, strength = drawn(3, 10, 6), drawn(3, 10, seed=1).exp()
    method = FlowCutPlus(target_num=4)
    kept = chosen(method, states, strength, (4, 10, 3), (10, 10, 8))
    assert kept.index[1].tolist() == list(range(10))
    for row, (target, real) in {0: (4, 10), 2: (3, 8)}.items():
        own = slice(row, row + 1)
        alone = chosen(method, states[own, :real], strength[own, :real], (target,), (real,)).index[0]
        assert kept.index[row, :target].tolist() == alone.tolist()


def test_frames_compete_and_each_keeps_its_best() -> None:
    frame = drawn(1, 8, 6)
    # Two frames that are equal, and one that differs.
    states = torch.cat([frame, frame + 1e-4 * drawn(1, 8, 6, seed=3), drawn(1, 8, 6, seed=2)])
    strength = torch.ones(3, 8) + 0.01 * drawn(3, 8, seed=4)
    best = strength.argmax(dim=1).tolist()
    for diversity in ("coverage", "determinant"):
        kept = competing(FlowCutPlus(target_num=12, diversity=diversity), states, strength, (4, 4, 4), (8, 8, 8))
        first, second, other = (set(row.tolist()) for row in kept)
        assert len(first) + len(second) + len(other) == 12
        assert {best[0]} <= first and {best[1]} <= second and {best[2]} <= other
        # What the second frame repeats is not kept twice, but for what each frame keeps anyway.
        assert first & second <= {best[0], best[1]}


def test_the_padding_of_a_frame_is_never_kept() -> None:
    states, strength = drawn(2, 8, 6), drawn(2, 8, seed=1).exp()
    kept = competing(FlowCutPlus(target_num=6), states, strength, (3, 3), (8, 5))
    assert kept[1].max() < 5 and sum(len(row) for row in kept) == 6
    assert all(row.tolist() == sorted(set(row.tolist())) for row in kept)


@torch.no_grad()
def test_the_question_decides_only_where_it_is_asked_to() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(1)
    prompts = [torch.tensor([tiny.prompt(seed=seed)]) for seed in (1, 2)]
    kept: dict[str, list[list[int]]] = {}
    for relevance in ("none", "text"):
        method = FlowCutPlus(target_num=TARGET, relevance=relevance)
        with attach(model, method) as handle:
            for ids in prompts:
                model(input_ids=ids, pixel_values=pixels)
                kept.setdefault(relevance, []).append(handle.trace.images[0].kept.tolist())
                tile = handle.trace.images[0].tiles[0]
                assert set(kept[relevance][-1]) <= set(tile.kept.tolist())
                projected = {"none": TARGET, "text": halfway(36, TARGET)}[relevance]
                assert handle.trace.images[0].projected_now == projected
    assert kept["none"][0] == kept["none"][1]
    assert kept["text"][0] != kept["text"][1]


def test_relevance_and_flow_both_have_their_say_behind_the_projector() -> None:
    features, text, strength = drawn(12, 6), drawn(3, 6, seed=1), drawn(12, seed=2).exp()
    states = drawn(12, 7, seed=3)
    size = torch.arange(1.0, 13.0)
    handed_on = torch.cat([strength[:, None], size[:, None], states], dim=1)
    view = ProjectedView(features, torch.arange(12), (3, 4), text, 5, handed_on)
    for power, exponent in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
        method = FlowCutPlus(target_num=5, relevance="text", relevance_power=power, quality=exponent)
        relevance = question_relevance(features, text) ** power
        quality = relevance * strength**exponent
        expected = largest_coverage(states[None], quality[None], (5,), (size * relevance**2)[None])[0]
        assert RelevantPolicy(method).select(view).tolist() == expected.tolist()


def test_what_reads_the_question_says_so() -> None:
    text, none = FlowCutPlus(target_num=4, relevance="text"), FlowCutPlus(target_num=4)
    assert text.reads_text and text.cuts_projected
    assert not none.reads_text and not none.cuts_projected


def test_relevance_is_scaled_over_the_tokens_of_the_image() -> None:
    tokens, text = torch.eye(3), torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    relevance = question_relevance(tokens, text)
    assert relevance.argmax() == 0 and float(relevance[0]) == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < float(relevance[2]) < 1e-5


@torch.no_grad()
def test_on_the_shipped_model_it_counts_at_most_two_percent_more_flops_than_flowcut() -> None:
    require_mini()
    loaded = load_model(mini.MINI)
    pictures = [Image.open(path).convert("RGB") for path in sorted(PICTURES.glob("*.jpg"))[:3]]
    for budget in (64, 16):
        totals = []
        for expression in ("flowcut", "flowcut_plus", "flowcut_plus(relevance=text)"):
            total = 0
            for picture in pictures:
                with attach(loaded.model, make_method(expression, budget)) as handle:
                    loaded.model(**many_inputs(loaded.processor, picture, ["What is in the picture?"]))
                    total += handle.trace.sequence.flops[0].total
            totals.append(total)
        assert max(totals[1:]) <= 1.02 * totals[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", 1.0),
        ("quality", -1.0),
        ("early_quality", -0.1),
        ("diversity", "x"),
        ("early", "x"),
        ("criteria", "x"),
        ("relevance", 1),
    ],
)
def test_bad_settings(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        FlowCutPlus(target_num=4, **{name: value})


@torch.no_grad()
def test_the_tower_hands_on_what_belongs_to_the_projected_tokens() -> None:
    model = tiny.tiny_model()
    seen: list[ProjectedView] = []

    class Spy(RelevantPolicy):
        def select(self, view: ProjectedView) -> Tensor:
            seen.append(view)
            return super().select(view)

    class Spying(FlowCutPlus):
        def projector_policy(self) -> RelevantPolicy:
            return Spy(self)

    with attach(model, Spying(target_num=TARGET, relevance="text")):
        model(input_ids=torch.tensor([tiny.prompt()]), pixel_values=tiny.pictures(1))
    (view,) = seen
    assert view.handed_on is not None and len(view.handed_on) == halfway(36, TARGET)
    projected = model.model.multi_modal_projector(view.handed_on[:, 2:])
    torch.testing.assert_close(projected, view.features)
