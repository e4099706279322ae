"""`piip eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from piip.cli.options import (
    Compile,
    ConfigName,
    Data,
    Device,
    Json,
    Overlap,
    Overrides,
    Tile,
    Weights,
    weights_or_own,
    with_data,
)

if TYPE_CHECKING:
    from piip.config.experiment import Config


def evaluate(
    config: ConfigName,
    overrides: Overrides = None,
    weights: Weights = None,
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Also write metrics.json, charts, images.jsonl and the worst images here.",
        ),
    ] = None,
    device: Device = None,
    backend: Annotated[
        Literal["faster", "pycocotools"] | None,
        typer.Option(help="Which COCO evaluation computes the metrics; by default faster."),
    ] = None,
    compile: Compile = False,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    json: Json = False,
) -> None:
    """Evaluate weights on the validation data of a config."""
    from piip.cli.console import is_main_process, out, print_json
    from piip.cli.tables import MOST_ROWS, WORST_ROWS, class_table, metric_table
    from piip.config.load import load_config

    settings = load_config(config, with_data(overrides, data))
    if backend is not None:
        settings = _with_backend(settings, backend)
    # These checks come before torch is imported, which takes seconds.
    weights = weights_or_own(weights, config)
    settings.data.val.check_files("data.val")
    from piip.engine.evaluate import run_evaluation
    from piip.tiling import Tiling

    tiling = None if tile is None else Tiling(tile, overlap)
    found = run_evaluation(settings, weights=weights, output=output, device=device, compile=compile, tiling=tiling)
    if not is_main_process():
        return
    if json:
        print_json({"config": settings.name, "weights": str(weights), **found.document})
        return
    console = out()
    console.print(metric_table(found.metrics))
    for rows in found.tables:
        console.print(class_table(rows))
        if len(rows) > MOST_ROWS:
            console.print(
                f"the {WORST_ROWS} worst of {len(rows)} classes; --json and metrics.json of --output have all"
            )
    if output is not None:
        names = ["metrics.json", *(str(file.relative_to(output)) for file in found.files)]
        console.print(f"{', '.join(names)} written to {output}")


def _with_backend(config: Config, backend: str) -> Config:
    """The config with this backend for all metrics that have one. Raises ConfigError if none has."""
    from piip.errors import ConfigError

    chosen = config.chosen_metrics
    having = ["backend" in type(metric).model_fields for metric in chosen]
    if not any(having):
        raise ConfigError(f"--backend goes with the metric coco, and {config.name} has none; leave --backend out")
    metrics = (metric.model_copy(update={"backend": backend}) if has else metric for metric, has in zip(chosen, having))
    return config.model_copy(update={"metrics": tuple(metrics)})
