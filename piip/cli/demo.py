"""`piip demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piip.cli.options import Device, weights_or_own


def demo(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG]...",
            help="Runs, packs or shipped names with weights to choose from; by default those below runs/, and nano.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Who can see the page: by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860 on.")
    ] = None,
    device: Device = None,
) -> None:
    """Serve a web page to try networks on: drop an image, see what is found and what each branch sees."""
    from importlib.util import find_spec

    from piip.config.load import load_config
    from piip.errors import ConfigError

    if find_spec("gradio") is None:
        raise ConfigError("the page needs gradio: pip install 'piip[demo]'")
    names = networks or [*sorted(str(path.parent) for path in Path("runs").glob("*/config.yaml")), "nano"]
    chosen = {name: (load_config(name), weights_or_own(None, name)) for name in names}

    from piip.engine.device import choose_device
    from piip.page import build_page, serve

    page = build_page(chosen, choose_device(device))
    typer.echo(f"{', '.join(names)} at {serve(page, host=host, port=port)}; Ctrl-C ends it", err=True)
    page.block_thread()
