"""`piip predict`."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piip.cli.options import Compile, ConfigName, Device, Json, Overlap, Tile, Weights, weights_or_own

if TYPE_CHECKING:
    from piip.engine.predict import Prediction

_SHOWN = 20


def predict(
    config: ConfigName,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, and folders with all images below them.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Where overlays and predictions.json are written.")
    ] = Path("predictions"),
    weights: Weights = None,
    score_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Detections with a lower score are left out.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="NAME,...", help="Detections of other classes are left out.")
    ] = None,
    device: Device = None,
    compile: Compile = False,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    json: Json = False,
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
    from piip.engine.predict import RESULTS, run_prediction
    from piip.tiling import Tiling

    predictions = run_prediction(
        settings,
        images,
        weights=weights,
        output=output,
        score_threshold=score_threshold,
        classes=[name.strip() for name in classes.split(",")] if classes is not None else None,
        device=device,
        compile=compile,
        tiling=None if tile is None else Tiling(tile, overlap),
    )
    unreadable = sum(found.error is not None for found in predictions)
    if json:
        print((output / RESULTS).read_text(encoding="utf-8"))
    else:
        _print_table(predictions, output)
    if unreadable:
        raise DataError(f"{unreadable} of {len(predictions)} images could not be read and were left out")


def _print_table(predictions: Sequence[Prediction], output: Path) -> None:
    from piip.cli.console import out, table

    rows = [(found.image.name, found.error or found.words) for found in predictions]
    console = out()
    console.print(table(("image", "found"), rows[:_SHOWN], align="ll"))
    if len(rows) > _SHOWN:
        console.print(f"and {len(rows) - _SHOWN} more images")
    console.print(f"overlays and predictions.json are in {output}")
