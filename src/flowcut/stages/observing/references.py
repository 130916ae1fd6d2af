"""Trainers that compare a model with a reference (DPO, GRPO and others in TRL) and load that by themselves.

Such a reference is the same model without the method: the cut model would be compared with what the uncut one says,
without a word. Which trainer a training pass belongs to is nowhere to be asked, so it is looked for among the callers.
"""

from __future__ import annotations

import sys

from torch import nn

from ...errors import FlowCutError
from .stage import HANDLE


def check_reference(base: nn.Module) -> None:
    """Make sure that the trainer that called has no uncut reference of an attached model.

    Args:
        base: the attached base model.

    Raises:
        FlowCutError: it has; says what to do.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        caller = frame.f_locals.get("self")
        reference = getattr(caller, "__dict__", {}).get("ref_model")
        if isinstance(reference, nn.Module):
            twins = [module for module in reference.modules() if type(module) is type(base)]
            if any(HANDLE not in vars(twin) for twin in twins):
                raise FlowCutError(
                    f"The reference model of {type(caller).__name__} is not cut, but the model compared with it "
                    "is: the trainer loaded it by itself. Give it a copy of the attached model, "
                    "ref_model=copy.deepcopy(model), or attach the method to trainer.ref_model."
                )
            return
