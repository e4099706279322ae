"""`piip export`."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piip.cli.options import ConfigName, Json, Overrides, Weights, weights_or_own

if TYPE_CHECKING:
    from piip.export.export import Report


class Format(str, Enum):
    """Kinds of files."""

    onnx = "onnx"
    torch = "torch"


class Sampling(str, Enum):
    """Forms of deformable attention."""

    gridsample = "gridsample"
    gather = "gather"
    plugin = "trt-plugin"


class Dynamic(str, Enum):
    """What may differ from run to run."""

    batch = "batch"


def export(
    config: ConfigName,
    overrides: Overrides = None,
    weights: Weights = None,
    output: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="The file to write; large weights go beside it.")
    ] = Path("model.onnx"),
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of the images; by default a square as large as images of training."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many images go in at once.")] = 1,
    dynamic: Annotated[Dynamic | None, typer.Option(help="Take any number of images.")] = None,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Take float32, (pixels - mean) / std, instead of uint8 RGB.")
    ] = False,
    final: Annotated[
        bool, typer.Option("--final", help="Give results, such as boxes after NMS and pasted masks; one image a run.")
    ] = False,
    file_format: Annotated[Format, typer.Option("--format", help="ONNX, or a program of torch.export.")] = Format.onnx,
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators.")] = 18,
    deform: Annotated[
        Sampling, typer.Option(help="Deformable attention by GridSample, by gathering, or as TensorRT's plugin.")
    ] = Sampling.gridsample,
    half: Annotated[bool, typer.Option("--half", help="Linear layers and convolutions in float16.")] = False,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Compare on this image; may be repeated."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Largest error that passes; 0.001, with --half 0.05.")
    ] = None,
    bench: Annotated[bool, typer.Option("--bench", help="Time the file and the network, with one thread.")] = False,
    json: Json = False,
) -> None:
    """Write a network as a file for other runtimes, run the file, and prove that it computes the same."""
    from piip.cli.console import out, print_json
    from piip.config.load import load_config
    from piip.errors import CheckError

    settings = load_config(config, overrides or ())
    weights = weights_or_own(weights, config)
    long_side = min(settings.data.train_transforms.long_side, settings.data.val_transforms.long_side)
    divisor = settings.data.val_transforms.pad_divisor
    side = -(-long_side // divisor) * divisor
    sides = (side, side) if size is None else _size(size)

    from piip.engine.log import logging_to
    from piip.export.export import export as run
    from piip.export.graph import Form
    from piip.export.verify import exceeding

    form = Form(sides, batch=None if dynamic else batch, pixels=not normalised, final=final)
    with logging_to():
        report = run(
            settings,
            weights=weights,
            output=output,
            form=form,
            file_format=file_format.value,
            opset=opset,
            deform=deform.value,
            half=half,
            images=image or (),
            tolerance=tolerance,
            bench=bench,
        )
    wrong = exceeding(report.differences, report.tolerance)
    if json:
        from dataclasses import asdict

        print_json(asdict(report) | {"files": [str(file) for file in report.files], "passed": not wrong})
    else:
        _print(out(), report)
    if wrong:
        names = ", ".join(one.name for one in wrong)
        raise CheckError(
            f"{output} does not compute what the network computes: {names} beyond {report.tolerance:g}; the file stays "
            "for a closer look"
        )


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:[x,](\d+))?", text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"--size '{text}': give height and width, as in 1024x1024")
    return int(match[1]), int(match[2] or match[1])


def _print(console: object, report: Report) -> None:
    from rich.console import Console

    from piip.cli.console import facts, paragraphs
    from piip.cli.tables import print_table

    assert isinstance(console, Console)
    size = f"{report.bytes / 2**20:.1f} MiB, of which weights {report.weight_bytes / 2**20:.1f}"
    console.print(facts([("file", report.files[0]), ("size", size), ("takes", report.inputs)]))
    rows = [
        (
            one.name,
            " x ".join(map(str, one.shape)),
            f"{one.error:.1e}",
            f"{one.largest:.4g}",
            f"{one.alone:.1%}",
        )
        for one in report.differences
    ]
    print_table(console, ("output", "shape", "largest error", "largest value", "rows alone"), rows)
    paragraphs(
        console,
        f"{report.tried} images in {report.runtime}. largest error: as a share of the largest value, of 1 at least; of "
        "labels and masks the share that differ. rows alone: found on one side only.",
    )
    if report.speed is not None:
        network, program = report.speed
        console.print(
            f"one thread: network {network:.0f} ms, file {program:.0f} ms, {network / program:.2f} times as fast"
        )
