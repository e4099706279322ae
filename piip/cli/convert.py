"""`piip convert-ckpt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 10


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="An official checkpoint, .pth.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The .safetensors file to write.")],
    config: Annotated[str, typer.Option("--config", metavar="CONFIG", help="The network the weights are for.")],
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Fail where a weight does not match.")] = True,
) -> None:
    """Convert an official checkpoint; its file is read without executing anything in it."""
    from piip.cli.console import facts, out
    from piip.config import load_config
    from piip.convert import convert_checkpoint

    report = convert_checkpoint(source, output, config=load_config(config), strict=strict)
    console = out()
    counts = [("written", str(output)), ("loaded", len(report.loaded))]
    for name in ("resized", "unused", "unknown", "missing"):
        keys = getattr(report, name)
        shown = ", ".join(map(str, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
        counts.append((name, f"{len(keys)}  {shown}".rstrip()))
    console.print(facts(counts))
