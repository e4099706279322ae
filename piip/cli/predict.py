"""`piip predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import ConfigName, Device, Weights


def predict(
    config: ConfigName,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    weights: Weights,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where overlays and results are written.")],
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", min=0.0, max=1.0, help="Results with a lower score are left out.")
    ] = 0.3,
    device: Device = None,
) -> None:
    """Predict on images; writes overlays and one JSON of results."""
    from piip.cli.console import out
    from piip.config import load_config
    from piip.engine.predict import run_prediction

    run_prediction(
        load_config(config), images, weights=weights, output=output, score_threshold=score_threshold, device=device
    )
    out().print(f"{output}")
