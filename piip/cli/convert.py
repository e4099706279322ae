"""`piip convert-ckpt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import require

_SHOWN = 10


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="An official checkpoint, .pth.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The file to write, .safetensors.")],
    config: Annotated[str, typer.Option(metavar="CONFIG", help="The network the weights are for.")],
    strict: Annotated[bool, typer.Option(help="Fail where a weight does not match.")] = True,
    ema: Annotated[bool, typer.Option("--ema", help="Take the file's averaged weights.")] = False,
    to_official: Annotated[
        bool,
        typer.Option(
            "--to-official",
            help="The way back: SOURCE is a run, a checkpoint or a weight file of ours, OUTPUT a .pth file.",
        ),
    ] = False,
) -> None:
    """Convert an official checkpoint; its file is read without executing anything in it."""
    from piip.cli.console import facts, out
    from piip.config.load import load_config
    from piip.errors import first_few

    if to_official and (ema or not strict):
        raise typer.BadParameter(
            "--ema and --no-strict are for official files; with --to-official give the weights themselves, as in "
            "RUN/checkpoints/last/ema.safetensors"
        )
    settings = load_config(config)
    require(source)
    if to_official:
        from piip.official.checkpoints import convert_back

        convert_back(source, output, config=settings)
        out().print(facts([("written", str(output)), ("network", settings.name)]))
        return
    from piip.official.checkpoints import convert_checkpoint

    report = convert_checkpoint(source, output, config=settings, strict=strict, ema=ema)
    other = f"  (the checkpoint does not have the form of {settings.name})" if report.config != settings.name else ""
    rows = [("written", str(output)), ("network", f"{report.config}{other}"), ("loaded", len(report.loaded))]
    for name in ("resized", "unused", "unknown", "missing"):
        keys = getattr(report, name)
        rows.append((name, f"{len(keys)}  {first_few(keys, _SHOWN)}".rstrip()))
    rows += [("unused as", reason) for reason in sorted(set(report.reasons.values()))]
    out().print(facts(rows))
