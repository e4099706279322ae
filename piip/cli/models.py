"""`piip models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from piip.cli.options import Json


def models(json: Json = False) -> None:
    """List the shipped configs with their published figures."""
    from piip.cli.console import out, print_json, table
    from piip.config import load_config, shipped_configs
    from piip.paper_flops import paper_cost

    rows: list[dict[str, Any]] = []
    for name in shipped_configs():
        config = load_config(name)
        cost = paper_cost(config.model.backbone)
        published = config.published.model_dump(exclude_none=True) if config.published else None
        rows.append(
            {
                "name": name,
                "official": config.official,
                "published": published,
                "resolutions": list(config.model.backbone.resolutions),
                "paper": asdict(cost) if cost else None,
            }
        )
    if json:
        print_json(rows)
        return
    console = out()
    columns = ("config", "model", "params", "GMACs", "box AP", "mask AP")
    console.print(table(columns, (_cells(row) for row in rows), align="llrrrr"))
    aliases = [(row["name"], row["official"]) for row in rows if row["official"]]
    console.print(table(("config", "official name, accepted as an alias"), aliases, align="ll"))
    console.print("params and GMACs as the paper counts them (see `piip flops`), AP as published on COCO val2017")


def _cells(row: dict[str, Any]) -> list[str | None]:
    published = row["published"] or {}
    scores = [f"{published[key]:.1f}" if key in published else None for key in ("box_ap", "mask_ap")]
    count = row["paper"]
    counted = [f"{count['params'] / 1e6:.1f}M", f"{count['macs'] / 1e9:.1f}"] if count else [None, None]
    return [row["name"], published.get("model"), *counted, *scores]
