"""The gate in front of the language model: where the cut tokens leave the sequence.

``generate()`` and the user count in uncut columns: prompts, masks and position ids have one column for every
placeholder. The language model and its cache count in columns that are left. This gate, hooks on the base
model's ``forward``, translates between the two; what it must remember between steps stays on the cache object
that the steps share, so generations may interleave, and a copied cache copies it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import FlowCutError, NotAppliedError
from ...methods.base import Method
from ...models.base import ModelParts
from ...models.costs import ModelCosts
from ...trace import CacheState, SequenceTrace, Trace
from ..decoder.layers import DecoderStage
from ..forward_pass import PART_KEYWORD, at_work, begin, end
from ..observing.overrides import Override
from ..observing.references import check_reference
from ..observing.stage import Stage
from ..observing.tracing import untraced
from ..projector.features import TRACES
from .cache import begun, caches_in, states_for, write_states
from .cache_argument import cache_in, with_current_name
from .generation import generation_overrides, recall
from .handing import PIXELS, check_modalities, check_unread, handed_to
from .outputs import OutputStage
from .packing import check_lengths
from .preparing import preparing_overrides
from .shortening import TOKENS, Shortened, Shortening, two_dimensional_mask
from .step import STEP, Steps


class SequenceStage(Stage):
    """Keeps the gate attached to a model until :meth:`close`.

    Args:
        parts: the model.
        method: what cuts.
        owner: the attachment, see :class:`~flowcut.stages.forward_pass.ForwardPass`.
        adopt: attaches to a replica of the model and gives its stage; once for every replica.
    """

    def __init__(
        self, parts: ModelParts, method: Method, owner: object, adopt: Callable[[nn.Module], SequenceStage]
    ) -> None:
        super().__init__()
        self.parts = parts
        self.method = method
        self.owner = owner
        self.adopt = adopt
        self.closed = False
        self.trace = Trace()
        self.trained = False
        self.costs = ModelCosts.of(parts)
        self.decoder = DecoderStage(parts, method)
        self.signature = inspect.signature(type(parts.base).forward)
        self.shortening = Shortening(parts, method, self.decoder.layers)
        self.steps = Steps(parts, method, self.decoder.layers)
        self.outputs = OutputStage(parts, method, owner)
        base, top = parts.base, parts.top
        self.handles = [
            base.register_forward_pre_hook(self._enter, with_kwargs=True),
            base.register_forward_hook(self._leave, with_kwargs=True),
        ]
        # The outermost of the two begins the pass, if no prefill did, and ends it.
        for module in (base,) if top is base else (base, top):
            self.handles += [
                module.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._end, always_call=True, with_kwargs=True),
            ]
            self.overrides += [
                Override(module, "forward", partial(self._forward, module)),
                Override(module, "_replicate_for_data_parallel", self._replicate),
            ]
        if top is not base:
            self.overrides += generation_overrides(parts, owner, bool(self.decoder.layers)) + preparing_overrides(
                parts, self.steps
            )
        self.all: tuple[Stage, ...] = (self.decoder, self.outputs, self)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of model and base model."""
        if STEP not in kwargs:
            self._open(module, kwargs.get("mm_encoder_outputs") or {})

    @untraced
    def _open(self, module: nn.Module, encoded: dict[str, Any]) -> None:
        """Begin a pass, unless one is at work around this call; ``encoded`` are images that came with it."""
        if module is not self.parts.base and module is not self.parts.top:
            self.adopt(module)._open(module, encoded)
            return
        current = at_work(self.owner)
        if current is None or current.module is None:
            current = begin(self.owner) if current is None else current
            current.module = module
            if current.recounted is not None:
                current.recounted.close()
        elif current.module is module:
            # A call inside a call, as by a hook.
            current = begin(self.owner)
            current.module = module
        current.announced = module
        current.encoded |= {name: output for name, output in encoded.items() if hasattr(output, TRACES)}

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook behind them, also after an error: end what :meth:`_begin` began."""
        if STEP not in kwargs:
            self._close(module)

    @untraced
    def _close(self, module: nn.Module) -> None:
        """End the pass that ``module`` began."""
        current = at_work(self.owner)
        if current is not None and current.module is module:
            current.module = None
            end(current)

    def _forward(self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``forward`` of model and base model: where it is called by itself, as PEFT did, the hooks see it, too."""
        if STEP in kwargs:
            if module is self.parts.base and not self.decoder.layers:
                del kwargs[STEP]
            return original(*args, **kwargs)
        current = at_work(self.owner)
        if self.closed or (current is not None and current.announced is module):
            if current is not None:
                current.announced = None
            if torch.compiler.is_compiling():
                # A graph cannot end in the middle of a block.
                return original(*args, **kwargs)
            with self._interruptible(module):
                return original(*args, **kwargs)
        return module(*args, **kwargs)

    @contextmanager
    def _interruptible(self, module: nn.Module) -> Iterator[None]:
        """End the pass of ``module`` where a block is interrupted, as by a keyboard; torch then calls no hooks."""
        try:
            yield
        except BaseException as interrupt:
            if not isinstance(interrupt, Exception):
                self._close(module)
            raise

    def _replicate(self, original: Callable[[], nn.Module]) -> nn.Module:
        """A replica's ``forward`` is its own; the hooks attach to it when it is called."""
        replica = original()
        for override in self.overrides:
            if override.slot in ("forward", "_replicate_for_data_parallel"):
                override.restore(replica)
        return replica

    def close(self) -> None:
        """Take everything off again."""
        self.closed = True
        super().close()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of the base model's forward: encode the images and shorten the sequence."""
        return None if STEP in kwargs else self._let_in(module, args, kwargs)

    @untraced
    def _let_in(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The same, where that was not done in front of the call."""
        if module is not self.parts.base:
            return self.adopt(module)._let_in(module, args, kwargs)
        with self._interruptible(module):
            return self._passed(module, args, kwargs)

    def _passed(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments behind the gate, or ``None`` where they pass untouched."""
        current = at_work(self.owner)
        assert current is not None
        current.stretches, current.decoder, current.outputs, current.after = [], None, None, ()
        if not self.trained and module.training and torch.is_grad_enabled():
            check_reference(module)
            self.trained = True
        call = self._named(module, args, kwargs)
        cache = cache_in(call)
        states = states_for(cache, self.decoder.layers)
        self._encode(call)
        encoded = call.get("mm_encoder_outputs") or {}
        for name, output in encoded.items():
            recall(output, current.encoded.get(name))
        features = {name: encoded[name] for name in self.parts.placeholders if encoded.get(name) is not None}
        if not features and not states:
            if not begun(cache, columns_of(call)):
                self.trace = Trace()
            return None
        if states:
            check_mask(states[0], call)
        if not features:
            check_lengths(call)
            current.after, step = self.steps.take(call, states)
            if step is not None:
                call[PART_KEYWORD] = current.decoder = step
            return (), call
        shortened = self.shortening.shorten(current, call, states, features)
        self.trace = self._traced(shortened)
        return (), call

    def _named(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of the call by name."""
        if not args:
            return with_current_name(kwargs)
        arguments = self.signature.bind(module, *args, **kwargs).arguments
        rest = arguments.pop("kwargs", {})
        return with_current_name({**dict(list(arguments.items())[1:]), **rest})

    def _encode(self, call: dict[str, Any]) -> None:
        """Run the vision tower now, unless ``generate()`` already did."""
        for modality in self.parts.placeholders:
            pixels = next((name for name in PIXELS[modality] if call.get(name) is not None), None)
            if pixels is None:
                continue
            outputs = dict(call.get("mm_encoder_outputs") or {})
            if modality in outputs:
                raise ValueError(f"Give either {pixels} or mm_encoder_outputs[{modality!r}], not both.")
            encoder = f"get_{modality}_features"
            others = [name for names in PIXELS.values() for name in names if name != pixels and name in call]
            alone = {**call, **dict.fromkeys([*others, "mm_encoder_outputs"])}
            handed = handed_to(self.parts.base, encoder, alone)
            if handed is None:
                # Pixels without an image, which the model's forward leaves alone.
                check_unread(self.parts, call, modality)
                continue
            args, arguments = handed
            outputs[modality] = getattr(self.parts.base, encoder)(*args, **{**arguments, "return_dict": True})
            call.update({"mm_encoder_outputs": outputs, pixels: None})
        check_modalities(self.parts, call)

    def _traced(self, shortened: Shortened) -> Trace:
        sequence = SequenceTrace(
            visual_tokens=tuple(sum(image.visual_tokens for image in images) for images in shortened.images_of),
            stretches=shortened.stretches,
            stretch_layers=tuple(layer + 1 for layer in self.decoder.layers),
            uncut_attended=shortened.uncut,
            images_of=tuple(tuple(images) for images in shortened.images_of),
            costs=self.costs,
        )
        return Trace(shortened.images, sequence)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Hook behind the base model's forward: leave the state on its cache, lay out what it returns."""
        return None if STEP in kwargs else self._let_out(output)

    @untraced
    def _let_out(self, output: Any) -> Any:
        """The same, where that was not done in front of the call."""
        current = at_work(self.owner)
        if current is None or not (current.stretches or current.after):
            return None
        if not current.stretches:
            for cache in caches_in(output):
                write_states(cache, current.after, self.decoder.layers)
            return None
        cuts = len(self.decoder.layers)
        if len(current.stretches) != 1 + cuts:
            raise NotAppliedError(
                f"{len(current.stretches) - 1} of {cuts} cuts inside the language model took place: "
                "its layers were replaced or wrapped after attaching; detach, make the change, then attach."
            )
        for cache in caches_in(output):
            write_states(cache, tuple(stretch.after for stretch in current.stretches), self.decoder.layers)
        return self.outputs.lay_out(current, output)


def columns_of(call: dict[str, Any]) -> int:
    """How many columns a call has."""
    return int(next(call[name].shape[1] for name in TOKENS if call.get(name) is not None))


def check_mask(state: CacheState, call: dict[str, Any]) -> None:
    """Make sure that a call which continues on a cut cache counts in uncut columns.

    Raises:
        FlowCutError: the attention mask does not cover the uncut sequence.
    """
    columns = columns_of(call)
    mask = two_dimensional_mask(call)
    if mask is not None and mask.shape[1] != state.uncut_length + columns:
        raise FlowCutError(
            f"The attention mask has {mask.shape[1]} columns, but the cache stands for {state.uncut_length} and "
            f"{columns} more were given. Pass the mask of the whole uncut sequence, cached part included."
        )
