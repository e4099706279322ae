"""The `piip` command.

No module of this package may import torch at its top, so that `piip --help` is instant; commands import what they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.core import TyperCommand

from piip import __version__
from piip.cli import (
    bench,
    convert,
    convert_config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    flops,
    init,
    memory,
    models,
    pack,
    predict,
    search,
    show,
    train,
)
from piip.cli.errors import Debug, command
from piip.cli.options import OverridesCommand

# OpenMP reads this when torch is loaded. Its threads then sleep while they wait for each other. If they spin instead, a
# training step on a CPU takes up to twenty times as long while the machine has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    name="piip",
    help="Parameter-inverted image pyramid networks: train, evaluate, predict, count, convert.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"piip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    context.obj = debug


def _add(
    name: str,
    function: Callable[..., None],
    examples: Sequence[str],
    *,
    cls: type[TyperCommand] = TyperCommand,
    group: typer.Typer = app,
) -> None:
    """Adds a command whose help ends with examples; lines of up to 78 characters fit a narrow terminal."""
    epilog = "\n\n".join(["Examples:", *examples])
    group.command(name, cls=cls, epilog=epilog)(command(function))


_add(
    "train",
    train.train,
    [
        "piip train detection/mask_rcnn_piip_nano_shapes --output runs/first",
        "piip train mine.yaml optim.lr=5e-5 --weights runs/first --resume",
    ],
    cls=train.TrainCommand,
)
_add(
    "eval",
    evaluate.evaluate,
    ["piip eval runs/first", "piip eval mine.yaml --weights weights.safetensors --output results --json"],
    cls=OverridesCommand,
)
_add(
    "predict",
    predict.predict,
    [
        "piip predict nano photo.jpg",
        "piip predict mine.yaml 'photos/*.png' --weights runs/first --output shown",
    ],
)
_add(
    "flops",
    flops.flops,
    ["piip flops --branches tsb --resolutions 1120,896,448", "piip flops tsb mask_rcnn_vit_b scale=0.5"],
    cls=OverridesCommand,
)
_add(
    "convert-ckpt",
    convert.convert,
    [
        "piip convert-ckpt released.pth weights.safetensors --config mask_rcnn_vit_b",
        "piip convert-ckpt runs/first back.pth --config mine.yaml --to-official",
    ],
)
_add(
    "convert-config",
    convert_config.convert_config,
    ["piip convert-config official.py", "piip convert-config official.py --output mine.yaml"],
)
_add(
    "bench",
    bench.bench,
    ["piip bench mask_rcnn_piip_nano_shapes", "piip bench mask_rcnn_vit_b --against mask_rcnn_piip_tsb_1120_896_448"],
    cls=OverridesCommand,
)
_add(
    "search",
    search.search,
    ["piip search tsb --budget 300G --output mine.yaml", "piip search --latency 2s --frontier frontier.png"],
)
_add(
    "memory",
    memory.memory,
    ["piip memory mask_rcnn_piip_sbl_1568_1120_672", "piip memory mask_rcnn_piip_h6b_1024_512 --limit 40GB"],
    cls=OverridesCommand,
)
_add(
    "export",
    export.export,
    [
        "piip export nano --final --output nano.onnx",
        "piip export runs/first --size 1024x1024 --dynamic batch --deform gather",
    ],
    cls=OverridesCommand,
)
_add("pack", pack.pack, ["piip pack runs/first first", "piip pack runs/first first --push me/first"])
_add("models", models.models, ["piip models", "piip models --backbones dinov3"])
_add("demo", demo.demo, ["piip demo", "piip demo runs/first nano --port 8080"])
_add("doctor", doctor.doctor, ["piip doctor", "piip doctor --json"])
_add(
    "show",
    show.show,
    ["piip show mask_rcnn_piip_nano_shapes optim.lr=1e-4", "piip show runs/first --json"],
    cls=OverridesCommand,
)
_add("init", init.init, ["piip init photos", "piip init photos --output mine.yaml"])

data_app = typer.Typer(name="data", help="Look at data before training on them.", no_args_is_help=True)
_add(
    "check",
    data.check,
    ["piip data check photos", "piip data check annotations.json --repair clean.json"],
    group=data_app,
)
_add(
    "show",
    data.show,
    ["piip data show photos --output pages", "piip data show mine.yaml --output pages"],
    group=data_app,
)
app.add_typer(data_app)
