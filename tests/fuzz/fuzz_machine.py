"""The fuzzer: everything a program may do to an attached model, in any order, each result checked by a second way.

A *case* is one sequence of rules on one model; ``COUNTS`` counts the rules, ``Machine.done`` says what a case did.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import families
import padding
import torch
from fuzz_checks import agree, check_beams, check_forward, check_generated, check_refusal, generate_with, ours
from fuzz_talk import Features, Talk
from fuzz_turns import Turn
from fuzz_worlds import DTYPES, NAMES, VARIANTS, World, world
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor
from transformers import DynamicCache

from flowcut import METHODS, FlowCutError, Method, attach, detach, make_method
from flowcut.models import find_parts

COUNTS: Counter[str] = Counter()
REFUSALS: Counter[str] = Counter()

ROWS = st.lists(st.integers(0, 9), min_size=1, max_size=3)
FEW = st.lists(st.integers(0, 9), min_size=1, max_size=2)
NOISE = st.integers(0, 99)
BUDGETS = st.one_of(
    st.sampled_from([9, 1, 2, 3, 5, 6, 7, 12, 16, 24, 30]).map(lambda target: {"target_num": target}),
    st.sampled_from([0.05, 0.2, 1 / 3, 0.5, 0.9]).map(lambda ratio: {"retain_ratio": ratio}),
)
METHOD = st.fixed_dictionaries(
    {
        "name": st.sampled_from([name for name in METHODS if name != "sparsevlm"]),
        "variant": st.integers(0, 7),
        "budget": BUDGETS,
        "positions": st.sampled_from([None, "compact", "original"]),
        "outputs": st.sampled_from(["columns", "columns", "kept"]),
        "newline": st.booleans(),
    }
)
TURN = st.fixed_dictionaries(
    {
        "words": st.integers(1, 5),
        "padded": st.integers(0, 2),
        "steps": st.integers(0, 3),
        "pictures": FEW,
        "show": st.booleans(),
        "noise": NOISE,
        "copied": st.booleans(),
        "types": st.booleans(),
    }
)
CHANGES = (*DTYPES, "float32", "float64", "sdpa", "eager", "train", "eval", "copy", "copy", "pickle")
KINDS = ("greedy", "sampled", "static", "offloaded", "uncached", "beams", "several")


def method_from(drawn: dict[str, Any], budget: dict[str, Any] | None = None) -> Method:
    """A method as drawn, with another ``budget`` if one is given."""
    variants = VARIANTS.get(drawn["name"], [{}])
    fields: dict[str, Any] = dict(variants[drawn["variant"] % len(variants)])
    if drawn["positions"] is not None:
        fields["positions"] = drawn["positions"]
    fields |= {"outputs": drawn["outputs"], "image_newline": drawn["newline"]}
    return METHODS[drawn["name"]](**(drawn["budget"] if budget is None else budget), **fields)


Rule = Callable[..., None]


def refusable(function: Rule) -> Rule:
    """A rule that may end with an error of ours, which says what was given, what is allowed and what to do."""

    @wraps(function)
    def guarded(self: Machine, **drawn: Any) -> None:
        self.note(function.__name__, **drawn)
        try:
            function(self, **drawn)
        except (FlowCutError, ValueError) as error:
            if not ours(error):
                raise
            check_refusal(error)
            COUNTS["refused"] += 1
            REFUSALS[f"{function.__name__}: {error}"[:150]] += 1
            self.talk = None

    return guarded


class Interruption(RuntimeError):
    """Thrown in the middle of a pass."""


class Machine(RuleBasedStateMachine):
    """One model on its way through a case."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        Machine.last = self

    last: Machine | None = None

    def note(self, rule_name: str, **drawn: Any) -> None:
        """Keep the books."""
        COUNTS[rule_name] += 1
        self.done.append(f"{rule_name}({', '.join(f'{name}={value!r}' for name, value in drawn.items())})")

    @initialize(name=st.sampled_from(NAMES), drawn=METHOD)
    def begin(self, name: str, drawn: dict[str, Any]) -> None:
        """A model of some family, with some method attached."""
        self.note("begin", name=name, drawn=drawn)
        self.world: World = world(name)
        self.model: Any = self.world.model
        self.before = families.fingerprint(self.model)
        self.dtype, self.attention = "float32", "sdpa"
        self.lossy = False
        self.handle: Any = None
        self.method: Method | None = None
        self.talk: Talk | None = None
        self.originals: list[tuple[Any, Any, dict[str, Tensor], Tensor]] = []
        self._attach(drawn)

    @property
    def plain(self) -> Any:
        """The same model without anything attached."""
        return self.world.untouched(self.dtype, self.attention)

    # Attaching and what may be done to a model

    def _attach(self, drawn: dict[str, Any]) -> None:
        before = self.handle
        try:
            method = method_from(drawn)
            handle = attach(self.model, method)
        except (FlowCutError, ValueError) as error:
            check_refusal(error)
            COUNTS["attach refused"] += 1
            assert before is None or before.attached, "a refused method took the one before off"
            return
        assert before is None or not before.attached
        self.handle, self.method = handle, method

    @rule(drawn=METHOD)
    def attach(self, drawn: dict[str, Any]) -> None:
        """Attach, or replace what is attached."""
        self.note("attach", drawn=drawn)
        self._attach(drawn)

    @precondition(lambda self: self.handle is not None)
    @rule(by_handle=st.booleans())
    def detach(self, by_handle: bool) -> None:
        """Detach; the model is then an untouched one."""
        self.note("detach", by_handle=by_handle)
        self._detach(by_handle)
        inputs = self.world.batch([0, 1], "left", 0, self.dtype)
        with torch.no_grad():
            found, expected = self.model(**inputs).logits, self.plain(**inputs).logits
        assert torch.equal(found, expected), "a detached model is not the untouched one"

    def _detach(self, by_handle: bool = True) -> None:
        if by_handle:
            self.handle.detach()
        else:
            detach(self.model)
        assert not self.handle.attached
        self.handle = self.method = self.talk = None

    @rule(how=st.sampled_from(CHANGES))
    @refusable
    def change(self, how: str) -> None:
        """Something that programs do to a model."""
        COUNTS[how] += 1
        if how in DTYPES:
            self._to(how)
        if how in ("sdpa", "eager", "float64"):
            # transformers' own eager attention has NaN in float64 where there is padding in front.
            self.attention = "sdpa" if self.dtype == "float64" else how
            self.model.set_attn_implementation(self.attention)
        if how in ("train", "eval"):
            # The tiny models have no dropout.
            self.model.train(how == "train")
        if how == "copy":
            self._copy()
        if how == "pickle":
            self._pickle()

    def _copy(self) -> None:
        """Go on with a deep copy; the original must not notice what happens to it."""
        if self.originals:
            return
        inputs = self.world.batch([0], "left", 1, self.dtype)
        with torch.no_grad():
            expected = self.model(**inputs).logits
        self.originals.append((self.model, self.handle, inputs, expected))
        self.model = copy.deepcopy(self.model)
        with torch.no_grad():
            assert torch.equal(self.model(**inputs).logits, expected), "a copy answers otherwise"
        handles = vars(find_parts(self.model)[1].base).get("_flowcut_handle")
        assert (handles is None) == (self.handle is None)
        self.handle, self.talk = handles, None

    def _pickle(self) -> None:
        """Pickling is refused while attached, and works behind that."""
        if self.handle is not None:
            try:
                pickle.dumps(self.model)
            except FlowCutError as error:
                check_refusal(error)
            else:
                raise AssertionError("an attached model was pickled")
            return
        fresh = type(self.model)._from_config(copy.deepcopy(self.model.config), attn_implementation=self.attention)
        fresh.load_state_dict(self.model.state_dict())
        fresh = fresh.to(DTYPES[self.dtype]).eval()
        fresh.generation_config = copy.deepcopy(self.model.generation_config)
        with attach(fresh, make_method("flowcut", target_num=9)):
            pass
        loaded = pickle.loads(pickle.dumps(fresh))
        inputs = self.world.batch([1], "left", 2, self.dtype)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, self.plain(**inputs).logits)

    def _to(self, dtype: str) -> None:
        """Another number format."""
        if dtype in ("bfloat16", "float16") or self.lossy:
            # Rounded weights do not come back by themselves.
            self.lossy = True
            self.world.restore(self.model)
        self.model.to(DTYPES[dtype])
        self.dtype, self.talk = dtype, None

    # Calls

    def _call(self, rows: list[int], layout: str, noise: int) -> dict[str, Tensor]:
        if self.world.grid:
            # The model itself remembers one offset of positions, that of its last call.
            self.talk = None
        return self.world.batch(rows, layout, noise, self.dtype)

    def _turn(self, inputs: dict[str, Tensor], counted: bool, trace: Any, encoded: dict[str, Any]) -> Turn:
        assert self.method is not None
        return Turn(inputs, self.method, counted, encoded, trace)

    @rule(rows=ROWS, layout=st.sampled_from(padding.LAYOUTS), noise=NOISE, labels=st.booleans(), grad=st.booleans())
    @refusable
    def forward(self, rows: list[int], layout: str, noise: int, labels: bool, grad: bool) -> None:
        """A forward pass with any batch, its loss, and the backward pass."""
        inputs = self._call(rows, layout, noise)
        given: dict[str, Any] = {"output_hidden_states": True}
        if labels and layout != "middle":
            # What is predicted from padding is no one's business.
            mask = inputs["attention_mask"].bool()
            first = mask & (mask.long().cumsum(dim=1) == 1)
            given["labels"] = inputs["input_ids"].masked_fill(~mask | first, -100)
        with torch.set_grad_enabled(grad and "labels" in given):
            with Features(self.model) as encoded:
                output = self.model(**inputs, **given)
            if output.get("loss") is not None and output.loss.requires_grad:
                output.loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), "a gradient is not finite"
        self.model.zero_grad(set_to_none=True)
        if self.handle is None:
            with torch.no_grad():
                assert torch.equal(output.logits, self.plain(**inputs).logits), "uncut"
            return
        if self.handle.trace.sequence is None:
            with torch.no_grad():
                assert torch.equal(output.logits, self.plain(**inputs).logits), "text alone"
            return
        turn = self._turn(inputs, False, self.handle.trace, encoded)
        check_forward(self.plain, turn, output, given.get("labels"), self.dtype)

    @precondition(lambda self: self.handle is not None and self.dtype in ("float32", "float64"))
    @rule(rows=ROWS, layout=st.sampled_from(["left", "right", "both"]), noise=NOISE)
    @refusable
    def batch_of_singles(self, rows: list[int], layout: str, noise: int) -> None:
        """A batch gives what its rows give by themselves."""
        inputs = self._call(rows, "left", 0)
        assert self.method is not None
        with torch.no_grad():
            together = self.model(**(inputs if layout == "left" else padding.spread(inputs, layout))).logits
            kept = sorted(image.kept.tolist() for image in self.handle.trace.images)
            real = (inputs if layout == "left" else padding.spread(inputs, layout))["attention_mask"].bool()
            if self.method.outputs == "kept" and self.handle.trace.sequence is not None:
                real = self.handle.trace.sequence.stretches[-1].new_mask.bool()
            singles, alone = [], []
            for row in rows:
                one = self.world.batch([row], "left", 0, self.dtype)
                singles.append(self.model(**one).logits[0])
                alone += [image.kept.tolist() for image in self.handle.trace.images]
        assert kept == sorted(alone), "a batch keeps other tokens than its rows by themselves"
        for row, single in enumerate(singles):
            agree(together[row, real[row]], single, f"row {row} of a batch", self.dtype)

    @rule(rows=ROWS, noise=NOISE, drawn=METHOD, hidden=st.booleans())
    @refusable
    def full_budget(self, rows: list[int], noise: int, drawn: dict[str, Any], hidden: bool) -> None:
        """A method that may keep everything changes nothing."""
        inputs = self._call(rows, "left", noise)
        if self.handle is not None:
            self._detach()
        with torch.no_grad():
            expected = self.plain(**inputs, output_hidden_states=hidden)
            with attach(self.model, method_from(drawn, {"retain_ratio": 1.0})) as handle:
                found = self.model(**inputs, output_hidden_states=hidden)
                assert all(image.whole for image in handle.trace.images)
        assert torch.equal(found.logits, expected.logits), "a full budget changes the logits"
        for states, others in zip(found.hidden_states or (), expected.hidden_states or (), strict=True):
            assert torch.equal(states, others), "a full budget changes hidden states"

    @rule(rows=FEW, noise=NOISE, place=st.integers(0, 999), keyboard=st.booleans(), generating=st.booleans())
    @refusable
    def interrupt(self, rows: list[int], noise: int, place: int, keyboard: bool, generating: bool) -> None:
        """A call that ends in the middle, in some module of tower, projector, language model or head."""
        inputs = self._call(rows, "left", noise)
        modules = [module for module in self.model.modules() if not list(module.children())]
        error: type[BaseException] = KeyboardInterrupt if keyboard else Interruption

        def throw(*_: Any) -> None:
            raise error("in the middle")

        with torch.no_grad():
            expected = self.model(**inputs).logits
            hook = modules[place % len(modules)].register_forward_hook(throw)
            try:
                if generating:
                    self.model.generate(**inputs, max_new_tokens=2, do_sample=False)
                else:
                    self.model(**inputs)
            except (Interruption, KeyboardInterrupt):
                COUNTS["interrupted"] += 1
            finally:
                hook.remove()
            assert torch.equal(self.model(**inputs).logits, expected), "an interrupted call left something behind"

    # Generation

    @rule(rows=FEW, noise=NOISE, kind=st.sampled_from(KINDS), steps=st.integers(1, 4), seed=st.integers(0, 9))
    @refusable
    def generate(self, rows: list[int], noise: int, kind: str, steps: int, seed: int) -> None:
        """Any kind of generation; its answer is judged by what the second computation says behind every prefix."""
        inputs = self._call(rows, "left", noise)
        if self.handle is None:
            return
        turn = None
        with torch.no_grad():
            if kind in ("beams", "several", "uncached"):
                # There the trace has an entry for every beam, or is that of the last step.
                with Features(self.model) as encoded:
                    self.model(**inputs)
                turn = self._turn(inputs, True, self.handle.trace, encoded)
            torch.manual_seed(seed)
            with Features(self.model) as encoded:
                found = generate_with(self.model, inputs, kind, steps)
            turn = turn or self._turn(inputs, True, self.handle.trace, encoded)
        length = inputs["input_ids"].shape[1]
        if kind == "beams":
            check_beams(self.plain, turn, found, length, self.dtype)
        else:
            check_generated(self.plain, [turn], found, length, self.dtype, 2 if kind == "several" else 1)

    @precondition(lambda self: self.handle is not None)
    @rule(rows=FEW, noise=NOISE, steps=st.integers(1, 3), turns=st.lists(TURN, max_size=2))
    @refusable
    def talk_about(self, rows: list[int], noise: int, steps: int, turns: list[dict[str, Any]]) -> None:
        """A conversation, on a cache of the caller's own."""
        inputs = self._call(rows, "left", noise)
        if self.world.grid and all(row % len(self.world.samples) >= self.world.pictured for row in rows):
            return
        cache = DynamicCache(config=self.model.config.get_text_config())
        talk = Talk(inputs, cache)
        talk.speak(self.model, self.plain, self._turn, self.handle, steps, self.dtype, inputs)
        self.talk = talk
        for turn in turns:
            self._go_on(**turn)

    @precondition(lambda self: self.talk is not None and self.handle is not None)
    @rule(turn=TURN)
    @refusable
    def go_on(self, turn: dict[str, Any]) -> None:
        """Another turn of a conversation, behind whatever happened since."""
        self._go_on(**turn)

    def _go_on(
        self,
        words: int,
        padded: int,
        steps: int,
        pictures: list[int],
        show: bool,
        noise: int,
        copied: bool,
        types: bool,
    ) -> None:
        """Text or another picture, by ``generate()`` or (``steps`` 0) by a forward pass."""
        talk = self.talk
        assert talk is not None
        COUNTS["turn"] += 1
        if copied:
            talk.cache = copy.deepcopy(talk.cache)
        if self.world.grid and all(image.whole for turn in talk.turns for image in turn.trace.images):
            # Qwen's own forward cannot go on with several tokens where it is given the mask; generate() can.
            steps = max(steps, 1)
        if show and not self.world.grid:
            rows = [pictures[row % len(pictures)] for row in range(talk.rows)]
            more = self.world.batch(rows, "left", noise, self.dtype)
        else:
            more = talk.text(words, padded, noise, typed=types and self.world.grid)
        if steps:
            talk.speak(self.model, self.plain, self._turn, self.handle, steps, self.dtype, more)
        else:
            talk.listen(self.model, self.plain, self._turn, self.handle, self.dtype, more)

    def teardown(self) -> None:
        """Detach everything: the models are as they were before."""
        if not hasattr(self, "world"):
            return
        used = {id(model) for model, *_ in self.originals}
        for model, handle, inputs, expected in self.originals:
            with torch.no_grad():
                assert torch.equal(model(**inputs).logits, expected), "an original noticed what its copy did"
            if handle is not None:
                handle.detach()
        if self.handle is not None:
            self.handle.detach()
        shared = self.world.model
        assert id(shared) in used or shared is self.model
        shared.set_attn_implementation("sdpa")
        self.world.restore(shared.eval())
        try:
            left = {
                name: (state, self.before[name])
                for name, state in families.fingerprint(shared).items()
                if state != self.before[name]
            }
            assert not left, f"left on a detached model: {left}"
            inputs = self.world.batch([0, 1], "left", 0, "float32")
            with torch.no_grad():
                found, expected = shared(**inputs).logits, self.world.probe
            assert torch.equal(found, expected), f"a detached model is off by {(found - expected).abs().max()}"
        except BaseException:
            world.cache_clear()
            raise


warnings.filterwarnings("ignore", message="target_num")
