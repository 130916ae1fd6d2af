"""Programs that run for days: many cycles without growth, threads, coroutines, processes, interruptions.

``FLOWCUT_CYCLES=10000 pytest -n 0 tests/test_long_life.py -k without_growth -s`` is the long run.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import fingerprint, registered
from renamed import CACHE
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut import DivPrune, FastV, FlowCut, FlowCutError, Method, attach, detach
from flowcut.stages.forward_pass import at_work, running_part
from flowcut.stages.observing import attention

CYCLES = int(os.environ.get("FLOWCUT_CYCLES", "40"))
METHODS: tuple[Method, ...] = (
    FlowCut(target_num=9),
    FlowCut(target_num=5),
    DivPrune(target_num=9),
    FastV(target_num=9, layers=1),
)
GREEDY: dict[str, Any] = {"do_sample": False, "suppress_tokens": [2, tiny.IMAGE_TOKEN], "max_new_tokens": 4}
KILOBYTES_PER_CYCLE = 2
"""Of resident memory in the long run; a leaked tensor of a pass would be many times that."""


def inputs_of(seed: int = 0) -> dict[str, Tensor]:
    """A prompt with a picture."""
    return {**tiny.batch([tiny.prompt(1, 4, seed)]), "pixel_values": tiny.pictures(1, seed)}


def resident() -> int:
    """Kilobytes of this process in memory; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024 if status.exists() else 0


def alive() -> tuple[int, int]:
    """Objects, and tensors among them."""
    gc.collect()
    objects = gc.get_objects()
    return len(objects), sum(issubclass(type(one), Tensor) for one in objects)


def hooks_of(model: Any) -> dict[str, tuple[Any, ...]]:
    """Attributes and numbers of hooks of every module; its config is another one with every attachment."""
    return {name: state[:3] for name, state in fingerprint(model).items()}


@pytest.mark.parametrize("kind", ["attaching", "generating", "attaching and generating"])
@torch.no_grad()
def test_many_cycles_without_growth(kind: str) -> None:
    model: Any = tiny.tiny_model()
    inputs, handle = inputs_of(), None

    def cycle(number: int) -> None:
        nonlocal handle
        if "attaching" in kind or handle is None:
            handle = attach(model, METHODS[number % len(METHODS)])
        if "generating" in kind:
            model.generate(**inputs, **{**GREEDY, "max_new_tokens": 2})
        if kind == "attaching":
            handle.detach()

    for number in range(2 * len(METHODS)):
        cycle(number)
    before, objects, kilobytes = hooks_of(model), alive(), resident()
    registry, users = set(ALL_ATTENTION_FUNCTIONS), dict(attention._users)
    cycles = CYCLES - CYCLES % len(METHODS)
    for number in range(cycles):
        cycle(number)
    after = alive()
    grown = resident() - kilobytes
    print(f"\n{kind}: {cycles} cycles, objects {objects[0]} -> {after[0]}, resident {grown:+d} kB")
    assert hooks_of(model) == before and at_work() is None and running_part() is None
    assert set(ALL_ATTENTION_FUNCTIONS) == registry and dict(attention._users) == users
    assert after[1] == objects[1], "tensors are left of passes that are over"
    assert after[0] - objects[0] < cycles, "objects are left of cycles that are over"
    if cycles >= 1000:
        assert grown < KILOBYTES_PER_CYCLE * cycles


@torch.no_grad()
def test_eight_threads_with_models_of_their_own() -> None:
    models: list[Any] = [tiny.tiny_model(seed=seed) for seed in range(8)]
    handles = [attach(model, METHODS[seed % len(METHODS)]) for seed, model in enumerate(models)]
    expected = [model.generate(**inputs_of(seed), **GREEDY) for seed, model in enumerate(models)]
    kept = [handle.trace.images[0].kept for handle in handles]
    together = threading.Barrier(8)

    def work(seed: int) -> None:
        together.wait()
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(models[seed].generate(**inputs_of(seed), **GREEDY), expected[seed])
                assert torch.equal(handles[seed].trace.images[0].kept, kept[seed])
                again = attach(models[seed], METHODS[seed % len(METHODS)])
                assert not handles[seed].attached
                handles[seed] = again

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert at_work() is None


@torch.no_grad()
def test_one_model_under_a_lock_as_servers_have_it() -> None:
    model: Any = tiny.tiny_model()
    lock, expected = threading.Lock(), {}
    registry = registered()
    for number, method in enumerate(METHODS):
        with attach(model, method):
            expected[number] = model.generate(**inputs_of(number), **GREEDY)

    def ask(request: int) -> None:
        number = request % len(METHODS)
        with lock, torch.no_grad(), attach(model, METHODS[number]) as handle:
            assert torch.equal(model.generate(**inputs_of(number), **GREEDY), expected[number])
            assert len(handle.trace.images) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(12)))
    assert registered() == registry


def steps_of(model: Any, seed: int) -> Any:
    """An answer token by token, as a server streams it."""
    cached = DynamicCache(config=model.config.get_text_config())
    given = inputs_of(seed)
    for _ in range(4):
        with torch.no_grad():
            logits = model(**given, use_cache=True, **{CACHE: cached}).logits
        token = logits[:, -1:].argmax(dim=-1)
        given = {"input_ids": token}
        yield int(token)


def test_coroutines_that_take_turns_on_one_model() -> None:
    model: Any = tiny.tiny_model()

    async def answer(seed: int, in_a_thread: bool, lock: asyncio.Lock) -> list[int]:
        steps, tokens = steps_of(model, seed), []
        while len(tokens) < 4:
            if in_a_thread:
                async with lock:
                    tokens.append(await asyncio.to_thread(next, steps))
            else:
                tokens.append(next(steps))
            await asyncio.sleep(0)
        return tokens

    async def everything(in_a_thread: bool) -> list[list[int]]:
        lock = asyncio.Lock()
        return await asyncio.gather(*(answer(seed, in_a_thread, lock) for seed in range(5)))

    for method in METHODS:
        with attach(model, method):
            expected = [list(steps_of(model, seed)) for seed in range(5)]
            for in_a_thread in (False, True):
                assert asyncio.run(everything(in_a_thread)) == expected
            assert at_work() is None


def answer_through(pipe: Any, model: Any) -> None:
    """In a process of its own: answer with the method that is attached, then without."""
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [model.generate(**inputs_of(), **GREEDY).tolist()]
        detach(model)
        found.append(model.generate(**inputs_of(), **GREEDY).tolist())
    pipe.send(found)
    pipe.close()


@pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_initialized(), reason="forks, which CUDA does not survive")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@torch.no_grad()
def test_a_forked_process_has_an_attached_model_of_its_own() -> None:
    model: Any = tiny.tiny_model()
    uncut = model.generate(**inputs_of(), **GREEDY).tolist()
    with attach(model, METHODS[0]) as handle:
        expected = model.generate(**inputs_of(), **GREEDY).tolist()
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=answer_through, args=(theirs, model))
        child.start()
        assert ours.poll(120), "the child does not answer"
        assert ours.recv() == [expected, uncut]
        child.join(30)
        assert child.exitcode == 0 and handle.attached
        assert model.generate(**inputs_of(), **GREEDY).tolist() == expected


@torch.no_grad()
def answer_elsewhere(pipe: Any, weights: dict[str, Tensor], method: Method) -> None:
    """What a spawned process does: load, attach what it was handed, and tell what it kept and generated."""
    model: Any = tiny.tiny_model()
    model.load_state_dict(weights)
    with attach(model, method) as handle:
        tokens = model.generate(**inputs_of(), **GREEDY).tolist()
        pipe.send((tokens, handle.trace.images[0].kept.tolist()))


@torch.no_grad()
def test_a_spawned_process_attaches_and_answers_as_this_one() -> None:
    """It is handed weights: a whole model that comes pickled into a fresh process does not run, uncut either (5.24)."""
    model: Any = tiny.tiny_model()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=answer_elsewhere, args=(there, model.state_dict(), METHODS[0]))
    child.start()
    assert here.poll(120), "the process did not answer"
    found = here.recv()
    child.join(30)
    with attach(model, METHODS[0]) as handle:
        expected = model.generate(**inputs_of(), **GREEDY).tolist()
        assert found == (expected, handle.trace.images[0].kept.tolist()) and child.exitcode == 0


@torch.no_grad()
def test_what_a_spawned_process_is_handed_is_a_detached_model_or_an_error() -> None:
    model: Any = tiny.tiny_model()
    with attach(model, METHODS[0]), pytest.raises(FlowCutError, match="multiprocessing"):
        ForkingPickler.dumps(model)
    loaded = pickle.loads(ForkingPickler.dumps(model))
    for method in METHODS:
        with attach(loaded, method), attach(model, method):
            assert torch.equal(loaded(**inputs_of()).logits, model(**inputs_of()).logits)
    assert pickle.loads(pickle.dumps(METHODS)) == METHODS


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals")
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("step", [0, 2])
@torch.no_grad()
def test_ctrl_c_in_the_middle_of_generate_leaves_the_model_as_it_was(method: Method, step: int) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive in the main thread")
    model, calls = tiny.tiny_model(), []
    uncut: Any = model(**inputs_of()).logits
    before = fingerprint(model)

    def press(*_: Any) -> None:
        calls.append(1)
        if len(calls) == step + 1:
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with attach(model, method):
            expected = model.generate(**inputs_of(), **GREEDY)  # type: ignore[operator]
            hook = model.model.language_model.layers[1].mlp.register_forward_hook(press)
            with pytest.raises(KeyboardInterrupt):
                model.generate(**inputs_of(), **GREEDY)  # type: ignore[operator]
            hook.remove()
            assert at_work() is None and running_part() is None
            assert torch.equal(model.generate(**inputs_of(), **GREEDY), expected)  # type: ignore[operator]
    finally:
        signal.signal(signal.SIGINT, handler)
    assert fingerprint(model) == before
    assert torch.equal(model(**inputs_of()).logits, uncut)


@pytest.mark.parametrize("method", METHODS[1:])
@torch.no_grad()
def test_a_device_that_is_out_of_memory_in_the_tower_may_be_asked_for_less(method: Method) -> None:
    model: Any = tiny.tiny_model()
    several = {**tiny.batch([tiny.prompt(1, 4, seed) for seed in range(3)]), "pixel_values": tiny.pictures(3)}

    def full(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        if len(output) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with attach(model, method) as handle:
        expected = model.generate(**inputs_of(), **GREEDY)
        for layer in model.model.vision_tower.encoder.layers[:6:2]:
            hook = layer.mlp.register_forward_hook(full)
            for call in (model, model.generate, lambda **given: model.get_image_features(given["pixel_values"])):
                with pytest.raises(torch.OutOfMemoryError):
                    call(**several)
                assert at_work() is None and running_part() is None
            assert torch.equal(model.generate(**inputs_of(), **GREEDY), expected)
            hook.remove()
        assert len(handle.trace.images) == 1
