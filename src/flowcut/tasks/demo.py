"""The picture and the question of ``flowcut demo``."""

from __future__ import annotations

from . import TaskQuestion, TaskScene, load_split

SCENE = 46
QUESTION = 0


def demo_scene() -> tuple[TaskScene, TaskQuestion]:
    """A scene of the built-in split, and one of its questions."""
    scene = load_split().scenes[SCENE]
    return scene, scene.questions[QUESTION]
