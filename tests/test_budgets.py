"""The budget a user names is what enters the language model, for every picture size.

What can stay is every token where the budget covers all of them; else, for methods that choose among patches, the
picture's patches (separators are none, and patches in the padding of tiles stand for no token); for methods that cut
inside the language model alone, every token.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import families
import pytest
import test_every_method as every
import tiny
import torch
import zoo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

from flowcut import CDPruner, DivPrune, FastV, FlowCut, Method, Random, ToMe, Uniform, VisionZip, attach
from flowcut.models.base import SEPARATOR
from flowcut.stages.tower.tiles import shared_out
from flowcut.trace import ImageTrace

LARGEST = 2
"""Tiles that the OneVision model takes at full size; the features of larger pictures are scaled down."""


@cache
def tiled_model(name: str) -> Any:
    """A model that cuts pictures into up to four tiles behind an overview."""
    if name == "llava_next":
        return zoo.case(name).model
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tiny.SHAPE, intermediate_size=64, vision_use_head=False),
        text_config=zoo.text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
        image_grid_pinpoints=[*zoo.PINPOINTS, [zoo.SIDE, zoo.SIDE], [zoo.SIDE, 4 * zoo.SIDE], [4 * zoo.SIDE, zoo.SIDE]],
        vision_aspect_ratio="anyres_max_9" if name == "llava_onevision" else f"anyres_max_{LARGEST}",
    )
    return families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",))


@torch.no_grad()
def traces(model: Any, sizes: list[tuple[int, int]], method: Method, seed: int = 0) -> list[ImageTrace]:
    """What becomes of images of these (height, width) in one call."""
    with attach(model, method):
        output = model.model.get_image_features(pictures(len(sizes), seed), torch.tensor(sizes))
    found: list[ImageTrace] = output.flowcut_images
    return found


def pictures(count: int, seed: int) -> Tensor:
    """Tiles of so many images; the first images are the same whatever follows."""
    return torch.stack([tiny.pictures(zoo.TILES, seed + number) for number in range(count)])


@torch.no_grad()
def asked(
    model: Any, sizes: list[tuple[int, int]], method: Method, seed: int = 0
) -> tuple[list[ImageTrace], list[int]]:
    """What becomes of images in one prompt, and how many visual tokens of each are left in the decoder's last layer."""
    uncut = traces(model, sizes, FlowCut(retain_ratio=1.0), seed)
    prompt = families.prompt([(tiny.IMAGE_TOKEN, image.placeholders) for image in uncut])
    inputs = {**tiny.batch([prompt], "left"), "pixel_values": pictures(len(sizes), seed)}
    with attach(model, method) as handle:
        model(**inputs, image_sizes=torch.tensor(sizes))
        assert handle.trace.sequence is not None
        image = handle.trace.sequence.stretches[-1].image
    return handle.trace.images, [int((image == number).sum()) for number in range(len(sizes))]


def expected(method: Method, image: ImageTrace) -> int:
    """The tokens of an image that its budget leaves."""
    budget = method.tokens_to_keep(image.placeholders)
    if budget == image.placeholders or not (method.cuts_tower or method.cuts_projected):
        return budget
    return min(budget, int((image.layout.tokens != SEPARATOR).sum()))


def method_of(name: str, budget: dict[str, Any]) -> Method:
    made: dict[str, Method] = {
        "flowcut": FlowCut(**budget),
        "flowcut, paper's tower": FlowCut(**budget, tower_budget="paper"),
        "flowcut, tower alone": FlowCut(**budget, decoder_layer=None, adaptive=False),
        "visionzip": VisionZip(**budget),
        "random": Random(**budget),
        "uniform": Uniform(**budget),
        "divprune": DivPrune(**budget),
        "cdpruner": CDPruner(**budget),
        "fastv": FastV(**budget),
    }
    return made[name]


EVERYWHERE = ("flowcut", "divprune", "fastv")
"""A cut in the tower (in LLaVA-NeXT once more inside the decoder), behind the projector, inside the decoder."""
TILED = [
    *[
        ("llava_next", method)
        for method in (*EVERYWHERE, "flowcut, paper's tower", "flowcut, tower alone", "visionzip")
    ],
    *[("llava_onevision", method) for method in (*EVERYWHERE, "random", "uniform", "cdpruner")],
    *[("llava_onevision, scaled down", method) for method in EVERYWHERE],
]
SIDES = st.one_of(st.integers(1, 400), st.sampled_from([10, 84, 168, 4000]))
BUDGETS = st.one_of(
    st.integers(1, 220).map(lambda number: {"target_num": number}),
    st.floats(0.01, 1.0).map(lambda ratio: {"retain_ratio": ratio}),
)


@pytest.mark.parametrize(("model_name", "method_name"), TILED)
@pytest.mark.filterwarnings("ignore:target_num")
@given(sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2), budget=BUDGETS)
@example(sizes=[(10, 4000)], budget={"target_num": 9})
@example(sizes=[(4000, 10), (40, 160)], budget={"target_num": 40})
@example(sizes=[(40, 160)], budget={"retain_ratio": 0.95})
@example(sizes=[(100, 300), (168, 168)], budget={"target_num": 1})
@example(sizes=[(300, 100), (300, 100)], budget={"target_num": 3})
@settings(max_examples=8)
def test_every_picture_keeps_its_budget(
    model_name: str, method_name: str, sizes: list[tuple[int, int]], budget: dict[str, Any]
) -> None:
    model, method = tiled_model(model_name), method_of(method_name, budget)
    found, left = asked(model, sizes, method)
    assert left == [expected(method, image) for image in found]
    for image in found:
        if image.visual_tokens < image.placeholders:
            assert bool(torch.isin(image.kept, image.layout.tokens).all()), "a patch in the padding was kept"
        tokens = image.layout.tokens[image.placeholder_kept]
        assert image.visual_tokens == len(tokens) == len(tokens[tokens >= 0]) + int((tokens < 0).sum())
        if model_name == "llava_next" and method_name == "flowcut" and not image.whole:
            # The tower's documented share: half the budget of every tile, as far as there are patches.
            share = min(tiny.PATCHES, max(1, image.target // 2)) * len(image.tiles)
            patches = int((image.layout.tokens >= 0).sum())
            assert image.visual_tokens == min(patches, max(image.target, share))
    # Beside others an image keeps what it keeps alone, whatever padding they have.
    if method.reads_text:
        return
    (alone,), _ = asked(model, sizes[-1:], method, seed=len(sizes) - 1)
    assert alone.placeholder_kept.tolist() == found[-1].placeholder_kept.tolist()
    assert [tile.kept.tolist() for tile in alone.tiles] == [tile.kept.tolist() for tile in found[-1].tiles]


@pytest.mark.parametrize("method_name", ["flowcut", "visionzip", "divprune", "fastv"])
@pytest.mark.parametrize("name", zoo.CASES)
@pytest.mark.filterwarnings("ignore:target_num")
@given(
    budget=st.one_of(
        st.integers(8, 130).map(lambda n: {"target_num": n}), BUDGETS.filter(lambda b: "retain_ratio" in b)
    )
)
@settings(max_examples=4)
@torch.no_grad()
def test_every_family_keeps_its_budget(name: str, method_name: str, budget: dict[str, Any]) -> None:
    case, method = zoo.case(name), method_of(method_name, budget)
    if not every.supported(method_name, case):
        return
    try:
        with attach(case.model, method) as handle:
            case.model(**case.together(case.samples))
            found, sequence = handle.trace.images, handle.trace.sequence
    except ValueError as error:
        assert "leaves no patch" in str(error)
        return
    assert sequence is not None
    left = [int((sequence.stretches[-1].image == number).sum()) for number in range(len(found))]
    assert left == [expected(method, image) for image in found]


@pytest.mark.parametrize("method", [FlowCut, Random, ToMe])
@torch.no_grad()
def test_padding_attends_as_in_the_uncut_model_until_it_is_cut(method: type[Method]) -> None:
    """With a budget for all patches, none of them changes by a bit, though the padding between them is left out."""
    model = tiled_model("llava_onevision")
    sizes = torch.tensor([(40, 160)])
    uncut = model.model.get_image_features(pictures(1, 3), sizes).pooler_output[0]
    (whole,) = traces(model, [(40, 160)], method(retain_ratio=1.0))
    is_patch = whole.layout.tokens >= 0
    assert int(is_patch.sum()) < whole.patches, "there is padding"
    with attach(model, method(target_num=int(is_patch.sum()))):
        output = model.model.get_image_features(pictures(1, 3), sizes)
    torch.testing.assert_close(output.pooler_output[0], uncut[is_patch], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_patches_outside_the_padding_are_ranked_among_themselves() -> None:
    """Against brute force: FlowCut with one cut, its scores computed by hand over the patches of every tile alone."""
    model = tiled_model("llava_onevision")
    tower, size = model.model.vision_tower, (40, 160)
    seen: list[tuple[Tensor, ...]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        projections = (module.q_proj, module.k_proj, module.v_proj)
        seen.append(tuple(own(hidden).unflatten(-1, (4, 8)).transpose(1, 2) for own in projections))

    # The model reads the last layer's output, so the cut follows the layer before it.
    hooks = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in tower.encoder.layers[:-1]]
    model.model.get_image_features(pictures(1, 0), torch.tensor([size]))
    for hook in hooks:
        hook.remove()
    (image,) = traces(model, [size], FlowCut(target_num=20, cut_every=100))
    assert [len(tile.kept) for tile in image.tiles] == [7, 7, 6]
    for number, tile in enumerate(image.tiles):
        own = image.layout.tokens // tiny.PATCHES == number
        places = (image.layout.tokens[own & (image.layout.tokens >= 0)] % tiny.PATCHES).sort().values
        total: Tensor | None = None
        for states in seen:
            query, key, value = (state[number][:, places] for state in states)
            relation = torch.softmax(query.mean(1, keepdim=True) @ key.mT / 8**0.5, dim=-1).mean(0)[0]
            semantic = torch.softmax(value.mean(1, keepdim=True) @ value.mT, dim=-1).mean(0)[0]
            current = (relation + semantic) * value.mean(0).abs().sum(-1)
            total = 0.5 * current if total is None else 0.5 * total + 0.5 * current
        assert total is not None
        # The first layer's score counts whole; only the order matters.
        assert tile.kept.tolist() == places[total.topk(len(tile.kept)).indices].sort().values.tolist()


@pytest.mark.parametrize("method_name", ["flowcut", "divprune"])
@pytest.mark.parametrize("target", [1, 9, 60])
def test_separators_that_stay_come_on_top_of_the_budget(method_name: str, target: int) -> None:
    model, budget = tiled_model("llava_onevision"), {"target_num": target, "image_newline": True}
    (image,), (left,) = asked(model, [(40, 160)], method_of(method_name, budget))
    tokens = image.layout.tokens[image.placeholder_kept]
    assert int((tokens >= 0).sum()) == min(target, int((image.layout.tokens >= 0).sum()))
    assert left == len(tokens) and (target == 1 or int((tokens == SEPARATOR).sum()) > 0)


def test_as_released_lets_the_padding_take_its_share() -> None:
    """The released code drops it afterwards, so that less than the budget may be left."""
    model = tiled_model("llava_next")
    released, ours = (traces(model, [(60, 150)], method)[0] for method in (FlowCut.as_released(40), FlowCut(40)))
    assert [len(tile.kept) for tile in released.tiles] == [20] * 3
    assert released.visual_tokens < 60 == ours.visual_tokens


@given(data=st.data())
def test_shares_go_to_tiles_that_have_room(data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, 6))
    rooms = data.draw(st.lists(st.integers(0, 9), min_size=tiles, max_size=tiles))
    total = data.draw(st.integers(1, 60))
    share, rest = divmod(total, tiles)
    shares = [max(1, share + (tile < rest)) for tile in range(tiles)]
    targets = shared_out(total, shares, rooms)
    assert sum(targets) == min(total, sum(rooms))
    assert all(0 <= target <= room for target, room in zip(targets, rooms, strict=True))
    if total >= tiles:
        assert all(target >= min(share, room) for target, share, room in zip(targets, shares, rooms, strict=True))


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_a_budget_for_one_tile_is_no_budget_for_the_picture(name: str) -> None:
    """LLaVA-NeXT's papers give 640 tokens to pictures of up to 2,880, of tiles with 576 each."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image,) = traces(tiled_model(name), [(100, 90)], FlowCut(target_num=tiny.PATCHES + 4))
    assert not image.whole
