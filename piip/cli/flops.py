"""`piip flops`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piip.cli.options import Json

if TYPE_CHECKING:
    from rich.console import Console

    from piip.config.experiment import ModelConfig
    from piip.flops.costs import Cost, Count


def flops(
    networks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG | LETTERS]... [KEY=VALUE]...",
            help="YAML files, shipped names, official file stems, or letters of DeiTs such as tsb; several are "
            "compared. KEY=VALUE replaces a value in each config.",
        ),
    ] = None,
    branches: Annotated[
        str | None, typer.Option(metavar="LETTERS", help="DeiT branches, finest resolution first, as in tsb.")
    ] = None,
    resolutions: Annotated[
        str | None, typer.Option(metavar="LIST", help="Pixels per branch of --branches, as in 1568,1120,672.")
    ] = None,
    json: Json = False,
) -> None:
    """Count parameters and multiply-accumulates, by part of the network, or of several networks."""
    names = [word for word in networks or [] if "=" not in word]
    overrides = [word for word in networks or [] if "=" in word]
    if bool(names) == (branches is not None):
        raise typer.BadParameter("give either CONFIG or --branches")
    if resolutions is not None and branches is None:
        raise typer.BadParameter("--resolutions goes with --branches; a CONFIG has its own")
    if overrides and (branches is not None or not all(map(_is_config, names))):
        raise typer.BadParameter(f"{overrides[0]} replaces a value in a CONFIG, and letters are none")
    sizes = _parse_resolutions(resolutions)

    from piip.cli.console import out, print_json
    from piip.flops.actual import actual_count
    from piip.official.flops.scripts import paper_cost

    models = [_from_letters(branches, sizes)] if branches is not None else [_find(name, overrides) for name in names]
    counted = []
    for name, model in models:
        side = model.backbone.resolutions[0]
        counted.append((name, model, actual_count(model, (side, side)), paper_cost(model.backbone)))
    if json:
        documents = [_document(*network) for network in counted]
        print_json(documents if len(names) > 1 else documents[0])
    elif len(names) > 1:
        _print_comparison(out(), counted)
    else:
        _print_parts(out(), *counted[0])


def _is_config(name: str) -> bool:
    return not re.fullmatch("[tsblTSBL]+", name) or Path(name).exists()


def _find(name: str, overrides: list[str]) -> tuple[str, ModelConfig]:
    """A network by the name of its config, or by letters, and what to call it."""
    from piip.config.load import load_config

    if not _is_config(name):
        return _from_letters(name, None)
    config = load_config(name, overrides)
    return config.name, config.model


def _from_letters(letters: str, sizes: tuple[int, ...] | None) -> tuple[str, ModelConfig]:
    from piip.config.experiment import ModelConfig
    from piip.config.letters import backbone_from_letters

    backbone = backbone_from_letters(letters, sizes)
    return f"{letters.lower()} {'/'.join(map(str, backbone.resolutions))}", ModelConfig(backbone=backbone)


def _parse_resolutions(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("/", ",").split(","))
    except ValueError:
        raise typer.BadParameter(f"--resolutions '{text}': give whole numbers, as in 1568,1120,672") from None


def _document(name: str, model: ModelConfig, actual: Count, paper: Cost | None) -> dict[str, Any]:
    return {
        "config": name,
        "input": [model.backbone.resolutions[0]] * 2,
        "paper": asdict(paper) if paper else None,
        "actual": asdict(actual.total),
        "parts": [{"name": part.name, **asdict(part.cost)} for part in actual.parts],
        "uncounted": list(actual.uncounted),
    }


def _print_comparison(console: Console, networks: list[tuple[str, ModelConfig, Count, Cost | None]]) -> None:
    from piip.cli.console import paragraphs
    from piip.cli.tables import giga, print_table

    first = networks[0][2].total.macs
    rows = []
    for name, model, actual, paper in networks:
        total = actual.total
        costs = (giga(paper.macs) if paper else None, giga(total.macs), f"{total.macs / first:.2f}x")
        rows.append((name, str(model.backbone.resolutions[0]), f"{total.params / 1e6:.1f}", *costs))
    print_table(console, ("network", "input", "M params", "paper", "runs", "ratio"), rows, align="lrrrrr")
    paragraphs(
        console, "paper, runs: GMACs as the paper counts and as it runs. ratio: as it runs, to the first network."
    )


def _print_parts(console: Console, name: str, model: ModelConfig, actual: Count, paper: Cost | None) -> None:
    from rich.text import Text

    from piip.cli.console import bar, paragraphs
    from piip.cli.tables import print_table
    from piip.official.flops.scripts import paper_script

    side, total = model.backbone.resolutions[0], actual.total
    console.print(f"{name}, input {side} x {side}\n")
    largest = max(part.cost.macs for part in actual.parts)
    rows: list[tuple[Any, ...]] = []
    for part in actual.parts:
        cost = part.cost
        cells = (f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.2f}", f"{cost.macs / total.macs:.1%}")
        rows.append((part.name, *cells, Text(bar(cost.macs / largest), style="cyan")))
    rows.append(("total", f"{total.params / 1e6:.2f}", f"{total.macs / 1e9:.2f}", "100.0%", ""))
    print_table(console, ("part", "M params", "GMACs", "share", ""), rows, align="lrrrl")
    if model.head.counted_at:
        paragraphs(console, f"heads: {model.head.counted_at}")
    if actual.uncounted:
        paragraphs(console, f"ops without a formula, not counted: {', '.join(actual.uncounted)}")
    totals = (("as the paper counts", paper), ("as it runs", total))
    exact = [(what, f"{cost.params:,}", f"{cost.macs:,}") if cost else (what, None, None) for what, cost in totals]
    print_table(console, ("total", "parameters", "multiply-accumulates"), exact)
    network = {
        "classification": "backbone and classifier, without pyramid, neck and head",
        "detection": "detection backbone, without neck and head",
        "network": "the whole network for 1000 classes, without resizing",
        None: "not defined for this backbone",
    }[paper_script(model.backbone) if model.backbone.merge else "network"]
    paragraphs(
        console,
        f"as the paper counts: {network}",
        "as it runs: the whole network, with padding of windows and resizing",
    )
