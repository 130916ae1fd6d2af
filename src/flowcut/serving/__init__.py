"""FlowCut in serving engines: a plug-in for vLLM, found by its entry point ``vllm.general_plugins``."""

from __future__ import annotations

import warnings
from importlib.metadata import version

ARCHITECTURE = "FlowCutForConditionalGeneration"
"""What ``architectures`` names to be served with a cut."""

TESTED = ("0.32",)
"""The releases of vLLM that the plug-in was run with."""


def register() -> None:
    """Tell vLLM of the plug-in's model class; called by vLLM in each of its processes."""
    from vllm import ModelRegistry

    running = version_of_vllm()
    if not running.startswith(TESTED):
        warnings.warn(
            f"flowcut's plug-in was tested with vLLM {', '.join(TESTED)}, and this is {running}. It builds on parts of "
            "vLLM that change between releases: compare an answer with transformers' before you trust it.",
            stacklevel=2,
        )
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.vllm_model:{ARCHITECTURE}")


def version_of_vllm() -> str:
    """The release of vLLM that is installed, under whichever name."""
    import vllm

    try:
        return version("vllm")
    except ImportError:
        return str(vllm.__version__)
