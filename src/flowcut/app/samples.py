"""Pictures to try the page on, with what flowcut-mini makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from ..tasks import TaskQuestion, TaskScene, load_split


@dataclass(frozen=True)
class Sample:
    """A picture and a question about it.

    Attributes:
        split: a built-in split.
        scene: the number of its scene.
        question: the number of the scene's question.
        right: whether flowcut-mini, uncut, answers it rightly; held by a test.
    """

    split: str
    scene: int
    question: int
    right: bool

    @property
    def found(self) -> tuple[TaskScene, TaskQuestion]:
        """The scene and the question."""
        scene = load_split(self.split).scenes[self.scene]
        return scene, scene.questions[self.question]

    @property
    def picture(self) -> Image.Image:
        """The picture."""
        return self.found[0].picture()

    @property
    def text(self) -> str:
        """The question."""
        return self.found[1].text

    def label(self, mini: bool) -> str:
        """What stands in the list.

        Args:
            mini: whether flowcut-mini is asked, of which it is known what it answers.
        """
        kind = "photograph" if self.split == "photo-v2" else "scene"
        told = ("answered rightly · " if self.right else "answered wrongly · ") if mini else ""
        return f"{told}{kind}: {self.text} ({self.found[1].answer})"


SAMPLES = (
    Sample("test-v1", 46, 0, True),
    Sample("test-v1", 100, 0, True),
    Sample("test-v1", 200, 0, True),
    Sample("test-v1", 77, 2, True),
    Sample("photo-v2", 73, 4, True),
    Sample("test-v1", 12, 1, False),
    Sample("photo-v2", 27, 4, False),
    Sample("photo-v2", 57, 4, False),
)
