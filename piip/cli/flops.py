"""`piip flops`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piip.cli.options import Json

if TYPE_CHECKING:
    from piip.flops.costs import Cost, Count


def flops(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A YAML file, a shipped name, or an official file stem."),
    ] = None,
    branches: Annotated[
        str | None,
        typer.Option("--branches", metavar="LETTERS", help="DeiT branches, finest resolution first, as in tsb."),
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option("--resolutions", metavar="LIST", help="Pixels per branch, as in 1568,1120,672."),
    ] = None,
    json: Json = False,
) -> None:
    """Count parameters and multiply-accumulates, by part of the network."""
    if (config is None) == (branches is None):
        raise typer.BadParameter("give either CONFIG or --branches")
    if resolutions is not None and branches is None:
        raise typer.BadParameter("--resolutions goes with --branches; a CONFIG has its own")
    sizes = _parse_resolutions(resolutions)

    from piip.cli.console import out, print_json
    from piip.config.experiment import ModelConfig
    from piip.config.letters import backbone_from_letters
    from piip.config.load import load_config
    from piip.heads.mask_rcnn.config import MaskRCNNConfig
    from piip.official.flops.scripts import paper_cost, paper_script

    if config is not None:
        loaded = load_config(config)
        name, model = loaded.name, loaded.model
    else:
        backbone = backbone_from_letters(branches or "", sizes)
        name = f"{(branches or '').lower()} {'/'.join(map(str, backbone.resolutions))}"
        model = ModelConfig.model_validate({"backbone": backbone})

    from piip.flops.actual import actual_count

    side = model.backbone.resolutions[0]
    actual = actual_count(model, (side, side))
    paper = paper_cost(model.backbone)
    if json:
        print_json(
            {
                "config": name,
                "input": [side, side],
                "paper": asdict(paper) if paper else None,
                "actual": asdict(actual.total),
                "parts": _parts(actual),
                "uncounted": list(actual.uncounted),
            }
        )
        return
    console = out()
    console.print(f"{name}, input {side} x {side}\n")
    console.print(_part_table(actual))
    head = model.head
    if isinstance(head, MaskRCNNConfig):
        console.print(
            f"heads: {head.rpn_proposals} proposals and {head.max_detections} detections; RoIAlign not counted"
        )
    if actual.uncounted:
        console.print(f"ops without a formula, not counted: {', '.join(actual.uncounted)}")
    console.print(_summary(paper, actual.total))
    console.print(_explanation(paper_script(model.backbone) if model.backbone.merge else "network"))


def _parse_resolutions(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("/", ",").split(","))
    except ValueError:
        raise typer.BadParameter(f"--resolutions '{text}': give whole numbers, as in 1568,1120,672") from None


def _parts(count: Count) -> list[dict[str, Any]]:
    return [{"name": part.name, **asdict(part.cost)} for part in count.parts]


def _part_table(count: Count) -> Any:
    from rich.text import Text

    from piip.cli.console import bar, table

    total, largest = count.total, max(part.cost.macs for part in count.parts)
    rows: list[tuple[Any, ...]] = []
    for part in count.parts:
        cost = part.cost
        cells = (f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e9:.2f}", f"{cost.macs / total.macs:.1%}")
        rows.append((part.name, *cells, Text(bar(cost.macs / largest), style="cyan")))
    rows.append(("total", f"{total.params / 1e6:.2f}", f"{total.macs / 1e9:.2f}", "100.0%", ""))
    return table(("part", "M params", "GMACs", "share", ""), rows, align="lrrrl")


def _summary(paper: Cost | None, actual: Cost) -> Any:
    from piip.cli.console import table

    totals = (("as the paper counts", paper), ("as it runs", actual))
    rows = [(name, f"{cost.params:,}", f"{cost.macs:,}") for name, cost in totals if cost]
    return table(("total", "parameters", "multiply-accumulates"), rows)


def _explanation(script: str | None) -> str:
    network = {
        "classification": "backbone and classifier, without pyramid, neck and head",
        "detection": "detection backbone, without neck and head",
        "network": "the whole network for 1000 classes, without resizing",
        None: "not defined for this backbone",
    }[script]
    return f"as the paper counts: {network}\nas it runs: the whole network, with padding of windows and resizing"
