"""`piip bench`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piip.cli.options import ConfigName, Device, Json, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from piip.bench.network import Measured


def bench(
    config: ConfigName,
    overrides: Overrides = None,
    against: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Another network, measured in turns with the first.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the images; by default as the finest branch sees them.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    device: Device = None,
    train: Annotated[bool, typer.Option("--train", help="A training step instead of inference.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile blocks and interactions.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Replay backbone and neck from a CUDA graph.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 10,
    json: Json = False,
) -> None:
    """Measure a network on this machine: latency, memory, launches, and what its parts take."""
    from piip.cli.console import out, print_json
    from piip.config.load import load_config

    configs = [load_config(name, overrides or ()) for name in (config, against) if name is not None]
    import platform

    import torch

    from piip.bench.network import measure
    from piip.engine.device import choose_device
    from piip.ops._extension import describe

    target = choose_device(device)
    found = measure(
        configs,
        device=target,
        size=size,
        batch=batch,
        train=train,
        compile=compile,
        graph=graph,
        repeats=repeats,
    )
    where = torch.cuda.get_device_name(target) if target.type == "cuda" else platform.processor() or "CPU"
    machine: dict[str, Any] = {
        "device": where,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ops": describe(),
        "compiled": compile,
    }
    if json:
        print_json({"machine": machine, "networks": [_document(one) for one in found]})
        return
    console = out()
    console.print(f"{where}, {machine['threads']} threads, torch {torch.__version__}, kernels {machine['ops']['cpu']}")
    for one in found:
        _print_parts(console, one)
    _print_figures(console, found)


def _document(one: Measured) -> dict[str, Any]:
    from dataclasses import asdict

    figures = {name: getattr(one, name) for name in ("median", "p90", "images_per_second", "share_of_products")}
    return asdict(one) | figures


def _print_parts(console: Console, one: Measured) -> None:
    from rich.text import Text

    from piip.cli.console import bar
    from piip.cli.tables import giga, print_table

    console.print(f"\n{one.config}, {one.batch} x {one.size} x {one.size}, {one.dtype}, parts of one forward pass")
    largest = max(part.milliseconds for part in one.parts)
    rows = [
        (
            part.name,
            f"{part.milliseconds:.1f}",
            giga(part.macs),
            str(part.launches),
            Text(bar(part.milliseconds / largest, 24), style="cyan"),
        )
        for part in one.parts
        if part.launches
    ]
    print_table(console, ("part", "ms", "GMACs", "launches", ""), rows, align="lrrrl")


def _print_figures(console: Console, found: list[Measured]) -> None:
    from piip.cli.console import paragraphs
    from piip.cli.tables import print_table

    figures: list[tuple[str, str, list[float]]] = [
        (f"{found[0].what}, ms, median", ".1f", [one.median for one in found]),
        ("ms, nine of ten below", ".1f", [one.p90 for one in found]),
        ("images a second", ".1f", [one.images_per_second for one in found]),
        ("first call, s", ".1f", [one.first_seconds for one in found]),
        ("peak memory, MiB", ".0f", [(one.peak_bytes or math.nan) / 2**20 for one in found]),
        ("GMACs", ".1f", [one.macs / 1e9 for one in found]),
        ("share of matrix speed", ".0%", [one.share_of_products for one in found]),
        ("launches", ".0f", [sum(part.launches for part in one.parts) for one in found]),
    ]
    rows = [[name, *(format(value, form) for value in values)] for name, form, values in figures]
    columns = ["", *(one.config.rpartition("/")[2] for one in found)]
    if len(found) == 2:
        for row, (_, _, (first, second)) in zip(rows, figures):
            row.append(f"{second / first:.2f}")
        columns.append("ratio")
    print_table(console, columns, rows)
    paragraphs(
        console,
        "launches: operators that are not views. share of matrix speed: multiply-accumulates a second, of what a large "
        "matrix product reaches here. peak memory: beyond weights and images.",
    )
