"""The `piip` command. Nothing here may import torch: `piip --help` has to be instant; commands import what they run."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from piip import __version__
from piip.cli import convert, convert_config, data, doctor, evaluate, flops, init, models, predict, train
from piip.cli.errors import Debug, command
from piip.cli.options import OverridesCommand

# OpenMP reads this when torch is loaded. Its threads then sleep while they wait for one another; when they spin and the
# machine has other work too, a training step on a CPU takes up to twenty times as long.
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


app.command("train", cls=train.TrainCommand)(command(train.train))
app.command("eval", cls=OverridesCommand)(command(evaluate.evaluate))
app.command("predict")(command(predict.predict))
app.command("flops", cls=OverridesCommand)(command(flops.flops))
app.command("convert-ckpt")(command(convert.convert))
app.command("convert-config")(command(convert_config.convert_config))
app.command("init")(command(init.init))
app.command("models")(command(models.models))
app.command("doctor")(command(doctor.doctor))

data_app = typer.Typer(name="data", help="Look at data before training on them.", no_args_is_help=True)
data_app.command("check")(command(data.check))
data_app.command("show")(command(data.show))
app.add_typer(data_app)
