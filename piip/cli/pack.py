"""`piip pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import Json, require


def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, a checkpoint, or a weight file of ours.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the folder to this model of the hub, too.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A model that --push makes is not public.")] = False,
    json: Json = False,
) -> None:
    """Make one folder of a model: config, weights, metrics and card; and share it."""
    from piip.cli.console import facts, out, print_json
    from piip.pack import pack as make

    folder = make(require(run), output)
    address = None
    if push is not None:
        from piip.weights.hub import push as upload

        address = upload(folder, push, private=private)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if json:
        print_json({"folder": str(folder), "files": files, "address": address})
        return
    rows = [("folder", str(folder)), *((name, f"{size / 2**20:.1f} MiB") for name, size in files.items())]
    out().print(facts([*rows, *([("hub", address)] if address else [])]))
