"""`piip predict`."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import ConfigName, Device, Weights, weights_or_own

_SHOWN = 20


def predict(
    config: ConfigName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    output: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where overlays and predictions.json are written.")
    ],
    weights: Weights = None,
    score_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Detections with a lower score are left out.")
    ] = 0.3,
    device: Device = None,
) -> None:
    """Predict on images; write overlays to look at, and all results as JSON."""
    from piip.config.load import load_config
    from piip.errors import DataError

    settings = load_config(config)
    # These checks come before torch is imported, which takes seconds.
    weights = weights_or_own(weights, config)
    for image in images:
        if not glob.has_magic(str(image)) and not os.path.lexists(image):
            raise DataError(f"image not found: {image}")
    from piip.cli.console import out, table
    from piip.engine.predict import run_prediction

    predictions = run_prediction(
        settings, images, weights=weights, output=output, score_threshold=score_threshold, device=device
    )
    rows = [(found.image.name, found.error or found.words) for found in predictions]
    console = out()
    console.print(table(("image", "found"), rows[:_SHOWN], align="ll"))
    if len(rows) > _SHOWN:
        console.print(f"and {len(rows) - _SHOWN} more images")
    console.print(f"overlays and predictions.json are in {output}")
    unreadable = sum(found.error is not None for found in predictions)
    if unreadable:
        raise DataError(f"{unreadable} of {len(predictions)} images could not be read and were left out")
