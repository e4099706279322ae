"""`piip models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piip.cli.options import Json

if TYPE_CHECKING:
    from piip.config.experiment import Config


# What stands behind the number of a config.
_MARKS = {"released": "●", "published": "○", "ours": " "}


def models(
    backbones: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="List timm's pretrained networks that can be branches instead: all whose name has this in it, or fits "
            "a pattern such as 'vit_*dinov3*'; '' for all.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the shipped configs with their published figures, costs and released checkpoints, or timm's backbones."""
    from piip.cli.console import out, paragraphs, print_json
    from piip.cli.tables import print_table
    from piip.config.load import load_config, shipped_configs

    if backbones is not None:
        _list_backbones(backbones, json=json)
        return
    configs = {name: load_config(name) for name in shipped_configs()}
    rows = [_row(name, config) for name, config in configs.items()]
    if json:
        print_json(rows)
        return
    console = out()
    figures = [
        (f"{number}{_MARKS[row['origin']]}", *_figures(row, config))
        for number, (row, config) in enumerate(zip(rows, configs.values()), 1)
    ]
    print_table(console, ("", "config", "params", "paper", "runs", "score"), figures, align="rlrrrr", titles=2)
    official = [
        (str(number), row["official"], "that name + .pth" if row["checkpoint"] else "none")
        for number, row in enumerate(rows, 1)
        if row["official"]
    ]
    columns = ("", "official name, accepted as an alias", "released checkpoint")
    print_table(console, columns, official, align="rll", titles=2)
    paragraphs(
        console,
        f"{_MARKS['released']} published with weights, {_MARKS['published']} published without weights; the others are "
        "of this project.",
        "params: of the whole network. paper, runs: GMACs for a square image of the highest resolution, as the "
        "published tables count and as the network multiplies, with neck and head (see `piip flops`).",
        "score: box/mask AP on COCO val2017, mIoU on ADE20K, top-1 on ImageNet, as published, in percent.",
    )


def _list_backbones(pattern: str, *, json: bool) -> None:
    from piip.branches.catalogue import backbones
    from piip.cli.console import out, paragraphs, print_json
    from piip.cli.tables import print_table
    from piip.errors import ConfigError

    found = backbones(pattern)
    if not found:
        raise ConfigError(f"no pretrained network of timm that can be a branch has '{pattern}' in its name")
    if json:
        print_json([one._asdict() for one in found])
        return
    console = out()
    rows = [
        (
            one.name,
            one.type,
            f"{one.params / 1e6:.0f}M",
            "-".join(map(str, dict.fromkeys(one.strides))),
            str(one.size),
            str(one.prefix or ""),
            one.licence or "not stated",
        )
        for one in found
    ]
    columns = ("name", "type", "params", "stride", "pixels", "prefix", "licence")
    print_table(console, columns, rows, align="llrrrrl", titles=1)
    paragraphs(
        console,
        f"{len(found)} pretrained networks. A branch is {{model: NAME, init: NAME}}; its type follows from the model.",
        "stride: pixels per cell after the first and the last block. pixels: side of the images of the pretraining. "
        "prefix: class token and registers that run beside the patches. licence: of the weights, as timm states it.",
    )


def _row(name: str, config: Config) -> dict[str, Any]:
    from piip.flops.recorded import recorded_count
    from piip.official.flops.scripts import paper_cost

    paper, actual = paper_cost(config.model.backbone), recorded_count(name, config.model)
    return {
        "name": name,
        "official": config.official,
        "origin": _origin(config),
        "checkpoint": f"{config.official}.pth" if config.official and config.released else None,
        "published": config.published.model_dump(exclude_none=True) if config.published else None,
        "resolutions": list(config.model.backbone.resolutions),
        "paper": asdict(paper) if paper else None,
        "actual": asdict(actual) if actual else None,
    }


def _origin(config: Config) -> str:
    if config.official and config.released:
        return "released"
    return "published" if config.official or config.published else "ours"


def _figures(row: dict[str, Any], config: Config) -> list[str | None]:
    from piip.cli.tables import giga

    scores = config.published.scores.values() if config.published else []
    params = f"{row['actual']['params'] / 1e6:.0f}M" if row["actual"] else None
    costs = [giga(row[kind]["macs"]) if row[kind] else None for kind in ("paper", "actual")]
    return [row["name"], params, *costs, "/".join(map(str, scores)) or None]
