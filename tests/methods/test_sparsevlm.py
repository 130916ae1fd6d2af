"""SparseVLM: the released choices and merged tokens, and its parts against hand-computed answers."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from released import AFTER, BEFORE, RELEASED, generator, kept_of_image, prompt
from test_decoder_methods import deep_model

from flowcut import SparseVLM, attach
from flowcut.methods.sparsevlm import SparseVLMPolicy, density_peaks, kept_at, raters
from flowcut.methods.views import Recycled
from flowcut.stages.decoder.decoder_pass import with_means


@pytest.mark.parametrize("seed", range(2))
def test_as_released(seed: int) -> None:
    """Raters, then three cuts one after the other, each with queries, keys and states of its own.

    Tokens are numbered by their order in front of each cut, and merged ones compared whatever their order, since the
    released code puts them elsewhere. None are recorded of a cut into two clusters: nearest neighbours of each other
    are equally dense there, and in the released code noise decides between them.
    """
    drawn, expected, visual = generator(seed), RELEASED["sparsevlm"][seed], 576
    entering = torch.randn(1, BEFORE + visual + AFTER, 4, generator=drawn)
    policy = SparseVLMPolicy(SparseVLM(target_num=expected["budget"]))
    view = prompt(drawn, 2, visual, uncut=576, target=expected["budget"])
    policy.enter(entering, view.image, view.last)
    assert (policy.images[0].raters - BEFORE - visual).tolist() == expected["raters"]
    for layer, cut in zip((2, 6, 15), expected["cuts"], strict=True):
        if layer != 2:
            view = prompt(drawn, layer, visual, uncut=576, target=expected["budget"])
        states = torch.randn(1, BEFORE + visual + AFTER, 4, generator=drawn)
        assert kept_of_image(policy.select(view)) == cut["kept"]
        (merged,) = policy.recycle(layer, states)
        means = with_means(states, merged)[0, merged.places]
        if cut["merged"] is not None:
            theirs = torch.tensor(cut["merged"])
            # Merged tokens differ by far more than they are off in their first entry.
            torch.testing.assert_close(
                means[means[:, 0].argsort()], theirs[theirs[:, 0].argsort()], rtol=1e-4, atol=1e-5
            )
        visual = len(cut["kept"]) + len(means)


@pytest.mark.parametrize(
    ("target", "kept"),
    [(64, (66, 30, 17)), (96, (238, 48, 26)), (128, (303, 110, 36)), (192, (300, 200, 110))],
)
def test_the_released_lists(target: int, kept: tuple[int, ...]) -> None:
    assert tuple(kept_at(cut, 576, target) for cut in range(3)) == kept
    assert [kept_at(cut, 36, 36) for cut in range(3)] == [36, 36, 36]
    assert kept_at(2, 576, 32) == round(17 / 2) and kept_at(2, 1152, 128) == 34 and kept_at(0, 576, 1) == 1


def test_raters_are_the_words_that_see_more_than_the_mean() -> None:
    visual = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])
    by_hand = torch.stack([torch.tensor([6.0, 0.0, -2.0]).softmax(0), torch.tensor([0.0, 0.5, -1.0]).softmax(0)])
    share = by_hand.mean(dim=0)
    assert raters(visual, text).tolist() == (share > share.mean()).tolist() == [True, False, False]
    assert raters(visual, text[:1]).tolist() == [True]


def test_density_peaks_find_clusters_that_are_far_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    tokens = middles.repeat_interleave(6, dim=0) + 0.1 * torch.randn(18, 2, generator=generator)
    shuffled = torch.randperm(18, generator=generator)
    centres, cluster = density_peaks(tokens[shuffled], 3)
    assert sorted((shuffled[centres] // 6).tolist()) == [0, 1, 2]
    assert (shuffled // 6).tolist() == (shuffled[centres] // 6)[cluster].tolist()
    # Equal tokens: the order breaks the ties, and every centre is in its own cluster.
    centres, cluster = density_peaks(torch.ones(7, 4), 3)
    assert cluster[centres].tolist() == [0, 1, 2] and len(set(centres.tolist())) == 3


def test_recycled_tokens_are_means() -> None:
    hidden = torch.arange(24.0).reshape(2, 6, 2)
    merged = Recycled(1, torch.tensor([1, 2, 4]), torch.tensor([0, 1, 0]), torch.tensor([4, 2]))
    changed = with_means(hidden, merged)
    assert changed[1, 4].tolist() == ((hidden[1, 1] + hidden[1, 4]) / 2).tolist()
    assert changed[1, 2].tolist() == hidden[1, 2].tolist()
    untouched = [0, 1, 3, 5]
    assert torch.equal(changed[1, untouched], hidden[1, untouched]) and torch.equal(changed[0], hidden[0])


@torch.no_grad()
def test_the_first_cut_keeps_what_the_raters_attend_to() -> None:
    model: Any = deep_model("eager")
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    entering: list[torch.Tensor] = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    maps = model(**inputs, output_attentions=True).attentions
    hook.remove()
    visual = (inputs["input_ids"][0] == tiny.IMAGE_TOKEN).nonzero()[:, 0]
    text = torch.arange(int(visual[-1]) + 1, inputs["input_ids"].shape[1])
    rating = text[raters(entering[0][0, visual], entering[0][0, text])]
    importance = maps[0].mean(dim=1)[0, rating][:, visual].mean(dim=0)
    method = SparseVLM(target_num=12, layers=(0, 1, 2))
    with attach(model, method) as handle:
        model(**inputs)
        sequence = handle.trace.sequence
    assert sequence is not None
    count = kept_at(0, tiny.PATCHES, 12)
    best = visual[importance.topk(count).indices]
    second = sequence.stretches[1]
    kept = set(second.cut.columns()[0][second.image[0] >= 0].tolist())
    (merged,) = second.recycled
    places = set(sequence.columns[0, merged.places].tolist())
    assert kept == set(best.tolist()) | places and not set(best.tolist()) & places
    recycled = int((tiny.PATCHES - count) * 0.3) + 1
    assert len(merged.members) == recycled and len(merged.places) == recycled // 10 + 1
    assert sequence.recycled_tokens == (sum(len(m.places) for s in sequence.stretches for m in s.recycled),)


def test_what_is_refused() -> None:
    for wrong in ({"layers": (1, 2)}, {"recycled_share": 2.0}, {"cluster_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SparseVLM(target_num=3, **wrong)  # type: ignore[arg-type]
