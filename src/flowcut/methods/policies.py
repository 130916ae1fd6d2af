"""A method at work in one pass: in the vision tower, behind the projector, inside the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from .views import DecoderView, LayerView, Merge, OutputView, ProjectedView, Recycled, Selection


class VisionPolicy(ABC):
    """A method at work in one pass through a vision tower."""

    @abstractmethod
    def observe(self, view: LayerView) -> None:
        """Take in what a layer's attention computed; called in every layer that may be cut."""

    def bias(self, layer: int) -> Tensor | None:
        """What is added to the attention logits of every patch's key in ``layer``, ``[B, N]``, or ``None``."""
        return None

    def select(self, layer: int) -> Selection | None:
        """The patches that go on after ``layer``, or ``None`` where this layer cuts nothing.

        The rest of the layer is not computed for the others, so they cannot be merged.
        """
        return None

    def reduce(self, view: OutputView) -> Selection | Merge | None:
        """As :meth:`select`, chosen from the layer's output; a :class:`Merge` joins patches."""
        return None

    def choose_pooled(self, weights: Tensor, targets: tuple[int, ...]) -> Selection:
        """The tokens that stay, where patches are pooled behind the tower and it stays whole.

        Called behind the last layer, if :attr:`Method.ranks_pooled`.

        Args:
            weights: float ``[tokens, patches]``, the weight of every patch in every pooled token of a row.
            targets: how many tokens of each row stay.
        """
        raise TypeError(f"{type(self).__name__} does not rank pooled tokens.")

    def rank(self) -> Tensor:
        """The importance of every patch, ``[B, N]``, of rows that were only ranked, where the model interpolates their
        patches behind the tower; called behind the last layer, if :attr:`Method.ranks_pooled`."""
        raise TypeError(f"{type(self).__name__} does not rank patches.")

    def handed_on(self) -> Tensor | None:
        """Numbers about every patch that leaves the tower, ``[B, K, C]``, for the :class:`ProjectorPolicy` of a method
        that cuts there as well; called behind the last layer. By default nothing."""
        return None


class ProjectorPolicy(ABC):
    """A method at work behind the projector, on one image after the other."""

    @abstractmethod
    def select(self, view: ProjectedView) -> Tensor:
        """The tokens that go on: int64 ``[target]``, ascending."""


class DecoderPolicy(ABC):
    """A method at work in one pass through the language model."""

    @abstractmethod
    def select(self, view: DecoderView) -> Tensor:
        """The columns that go on after the layer: boolean ``[B, S]``; text always stays."""

    def enter(self, hidden: Tensor, image: Tensor, last: Tensor) -> None:  # noqa: B027
        """Take in the embeddings ``[B, S, width]`` that the language model starts from; by default nothing.

        Args:
            image, last: see :class:`DecoderView`; the columns are those that entered the language model.
        """

    def recycle(self, layer: int, hidden: Tensor) -> list[Recycled]:
        """What becomes of the tokens that :meth:`select` just cut; by default they are gone.

        Args:
            layer: the layer that cut.
            hidden: ``[B, S, width]``, its output for all tokens.
        """
        return []
