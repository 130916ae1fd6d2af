"""The command ``flowcut demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_TARGET, JsonOption, RunOptions, user_errors
from .run import Subject, show_run

DEMO_OVERLAY = Path("flowcut-demo.png")


def demo_command(
    target_num: Annotated[int, typer.Option(min=1, help="Visual tokens kept of the picture.")] = DEFAULT_TARGET,
    overlay: Annotated[Path, typer.Option(help="Where to draw what was cut, layer by layer.")] = DEMO_OVERLAY,
    as_json: JsonOption = False,
) -> None:
    """Ask flowcut-mini about a picture that ships with flowcut; everything works offline."""
    # Behind the method's own warm-up, flowcut-mini's first uncut pass on a CPU takes as long as later ones, and it is a
    # fifth of the demo's time.
    options = RunOptions(max_new_tokens=16, repeats=1, drawing=overlay, as_json=as_json, warm_up=False)
    with user_errors():
        from ..methods import make_method
        from ..tasks.demo import demo_scene

        scene, question = demo_scene()
        show_run(Subject(scene.picture(), scene.name, question.text), make_method("flowcut", target_num), options)
