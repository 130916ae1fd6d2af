"""The command ``flowcut calibrate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RunOptions,
    opened_model,
    printable,
    progress_bar,
    quiet_libraries,
    user_errors,
)


def calibrate_command(
    images: Annotated[Path, typer.Option(help="A folder with some pictures of the kind that the model will see.")],
    output: Annotated[Path, typer.Option(help="The file to write, ending in .json.")],
    model: ModelOption = DEFAULT_MODEL,
    retain_ratios: Annotated[
        str, typer.Option(help="Budgets to try, as shares of the visual tokens; between them is interpolated.")
    ] = "1/18,1/9,2/9,1/3,2/3",
    most: Annotated[int, typer.Option("--pictures", min=1, help="At most so many pictures of the folder.")] = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fix how many tokens FlowCut's cuts take, by some pictures; flowcut(schedule=FILE) then waits for nothing."""
    options = RunOptions(model, device=device, dtype=dtype, as_json=as_json)
    with user_errors():
        with quiet_libraries(options.errors):
            from ..measure.calibrating import pictures_in

            if output.suffix != ".json":
                raise ValueError(f"--output must end in .json, got {output}.")
            shares = shares_from(retain_ratios)
            files = pictures_in(images)[:most]
            from ..inputs.pictures import load_image

            pictures = [load_image(file) for file in files]
        with opened_model(options) as (loaded, status):
            from ..measure.calibrating import calibrate
            from ..methods.fixed_schedule import write_calibration

            status.stop()
            with progress_bar(options.errors, disable=as_json) as bar:
                task = bar.add_task("Calibrating", total=len(pictures) * len(shares))
                calibration = calibrate(loaded, pictures, shares, on_step=lambda: bar.advance(task))
            write_calibration(output, calibration, model, len(pictures))
    if as_json:
        typer.echo(
            json.dumps({"model": model, "pictures": len(pictures), "output": str(output), **asdict(calibration)})
        )
    else:
        Console(soft_wrap=True).print(
            f"Schedule of {len(pictures)} pictures written to {printable(output)}; "
            f"use it with flowcut(schedule='{printable(output)}')."
        )


def shares_from(text: str) -> list[float]:
    """Shares from ``1/9,0.5``.

    Raises:
        ValueError: one is not in (0, 1).
    """
    try:
        shares = [float(Fraction(part.strip())) for part in text.split(",") if part.strip()]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--retain-ratios takes shares such as 1/9,1/3,0.5; got {text!r}.") from error
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"--retain-ratios takes shares between 0 and 1 such as 1/9,1/3; got {text!r}.")
    return shares
