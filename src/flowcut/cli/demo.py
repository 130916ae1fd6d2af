"""The command ``flowcut demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .compare import show_comparison
from .options import DEFAULT_TARGET, JsonOption, RunOptions, user_errors

DEMO_OVERLAY = Path("flowcut-demo.png")
DEMO_METHODS = "flowcut,flowcut_plus"


def demo_command(
    target_num: Annotated[int, typer.Option(min=1, help="Visual tokens kept of the picture.")] = DEFAULT_TARGET,
    overlay: Annotated[Path, typer.Option(help="Where to draw what FlowCut and FlowCut+ kept.")] = DEMO_OVERLAY,
    as_json: JsonOption = False,
) -> None:
    """Ask flowcut-mini about a picture that ships with flowcut, uncut, with FlowCut and with FlowCut+; offline."""
    options = RunOptions(max_new_tokens=16, repeats=1, drawing=overlay, as_json=as_json)
    with user_errors():
        from ..methods import make_methods
        from ..tasks.demo import demo_scene

        scene, question = demo_scene()
        methods = make_methods(DEMO_METHODS, target_num)
        show_comparison(scene.picture(), scene.name, question.text, methods, options)
