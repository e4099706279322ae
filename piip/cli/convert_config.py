"""`piip convert-config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import Json


def convert_config(
    official: Annotated[Path, typer.Argument(metavar="OFFICIAL.py", help="An official Python config.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write our config of it, a YAML file.")] = None,
    json: Json = False,
) -> None:
    """Explain an official Python config as one of ours; it is read as data and nothing in it is executed."""
    if output is not None and output.suffix not in (".yaml", ".yml"):
        raise typer.BadParameter(f"--output {output}: configs end in .yaml")

    from piip.cli.console import facts, out, print_json, table
    from piip.errors import CheckError
    from piip.official.configs.explain import explain_official_config, write_explained_config

    found = explain_official_config(official)
    if output is not None:
        write_explained_config(found, output)
    differences = {key: {"shipped": ours, "official": theirs} for key, (ours, theirs) in found.differences.items()}
    if json:
        document = {"config": found.shipped, "equal": not differences, "differences": differences}
        print_json(document | {"unmapped": found.unmapped, "output": str(output) if output else None})
    else:
        console = out()
        relation = "nearest shipped config" if differences else "equals shipped config"
        lines = [("official", str(official)), (relation, found.shipped)]
        console.print(facts([*lines, ("written", str(output))] if output else lines))
        if differences:
            rows = [(key, _short(value["shipped"]), _short(value["official"])) for key, value in differences.items()]
            console.print(table(("key", "shipped", "official"), rows, align="lll"))
        console.print(
            "not compared: losses, samplers, assigners, data paths, logging and other settings of the runtime"
        )
    if found.unmapped:
        raise CheckError("no counterpart here for: " + ", ".join(found.unmapped))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 32 else f"{text[:29]}..."
