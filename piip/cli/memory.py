"""`piip memory`."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from piip.cli.options import ConfigName, Json, Overrides


def memory(
    config: ConfigName,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs may share the states.")] = 8,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images on each GPU; by default data.batch_size over the GPUs.")
    ] = None,
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Memory of each GPU.")] = "80GB",
    json: Json = False,
) -> None:
    """Work out what training needs on each GPU, without one, and the simplest layout that fits."""
    from piip.cli.console import out, paragraphs, print_json
    from piip.cli.tables import print_table
    from piip.config.load import load_config

    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(GB|GiB|G)?", limit.strip())
    if match is None:
        raise typer.BadParameter(f"--limit '{limit}': give a size such as 80GB")
    most = float(match[1]) * (2**30 if match[2] == "GiB" else 1e9)
    settings = load_config(config, overrides or ())
    images = batch or max(1, settings.data.batch_size // gpus)

    from piip.memory import needs, training_size

    found = needs(settings, gpus=gpus, batch=images)
    fitting = next((need for need in found if need.peak <= most), None)
    size = training_size(settings)
    if json:
        document = {
            "config": settings.name,
            "gpus": gpus,
            "batch": images,
            "size": size,
            "limit": most,
            "layouts": [asdict(need) | {"peak": need.peak} for need in found],
            "suggested": None if fitting is None else asdict(fitting),
        }
        print_json(document)
        return
    console = out()
    console.print(f"{settings.name}, {images} images of {size[0]} x {size[1]} on each of {gpus} GPUs, GB")
    columns = ("layout", "weights", "grads", "optimizer", "ema", "activations", "passing", "peak")
    rows = []
    for need in found:
        name = "on every GPU" if need.shard == 1 else f"shared by {need.shard}"
        values = (
            need.parameters,
            need.gradients,
            need.optimizer,
            need.average,
            need.activations,
            need.transient,
            need.peak,
        )
        rows.append((name + (", computed again" if need.checkpointed else ""), *(f"{x / 1e9:.1f}" for x in values)))
    print_table(console, columns, rows)
    if fitting is None:
        told = (
            f"No layout on {gpus} GPUs fits {limit}: take more GPUs, fewer images, smaller ones (scale=0.5), or freeze"
        )
        paragraphs(console, f"{told} branches.")
    else:
        words = ["parallel.shard=all"] * (fitting.shard > 1)
        words += ["train.checkpoint_activations=all"] * fitting.checkpointed
        paragraphs(console, f"fits {limit}: {' '.join(words) or 'every GPU with all states, as by default'}")
    paragraphs(
        console,
        "In float32, heads at their limits; in bf16 activations take half to two thirds. passing: what is gathered or "
        "computed again at a time.",
    )
