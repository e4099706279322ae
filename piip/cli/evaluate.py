"""`piip eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from piip.cli.options import ConfigName, Device, Json, Overrides, Weights


def evaluate(
    config: ConfigName,
    weights: Weights,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write metrics.json here.")
    ] = None,
    device: Device = None,
    backend: Annotated[
        Literal["faster", "pycocotools"], typer.Option("--backend", help="Which COCO evaluation computes the metrics.")
    ] = "faster",
    json: Json = False,
) -> None:
    """Evaluate weights on the validation data of a config."""
    from piip.cli.console import is_main_process, out, print_json
    from piip.cli.metrics import class_table, metric_table
    from piip.config import load_config

    settings = load_config(config, overrides or ())
    from piip.engine.evaluate import run_evaluation

    metrics, rows = run_evaluation(settings, weights=weights, output=output, device=device, backend=backend)
    if not is_main_process():
        return
    if json:
        print_json({"config": settings.name, "weights": str(weights), "metrics": metrics, "classes": rows})
        return
    console = out()
    console.print(metric_table(metrics))
    console.print(class_table(rows))
    if output is not None:
        console.print(f"written to {output}")
