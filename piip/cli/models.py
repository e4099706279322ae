"""`piip models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from piip.cli.options import Json

# Rows of the published tables whose weights were not released; the files of all others bear the official name.
_NOT_RELEASED = {
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16_speedup",
    "mask_rcnn_convnext-base_1024_regular-fpn",
    "mask_rcnn_convnext-t_convnext-s_vit-b_1024_672_448_regular-fpn",
    "mask_rcnn_convnext-t_vit-s_convnext-b_1024_672_448_regular-fpn",
    "mask_rcnn_convnext-t_vit-s_vit-b_1024_672_448_regular-fpn",
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup",
    "mask_rcnn_internvit_lh6b_1536_1024_512_fpn_1x_coco_bs32_ms",
    "dino_4scale_internvit_lh6b_1536_1024_512_fpn_2x_coco_bs32_ms",
    "mask_rcnn_vit-t_convnext-s_convnext-b_1024_672_448_regular-fpn",
    "mask_rcnn_vit-t_convnext-s_vit-b_1024_672_448_regular-fpn",
    "mask_rcnn_vit-t_vit-s_convnext-b_1024_672_448_regular-fpn",
}

# What a row may publish, with the digits of its table.
_SCORES = {"box_ap": 1, "mask_ap": 1, "miou": 2, "top1": 1}


def models(json: Json = False) -> None:
    """List the shipped configs with their published figures, costs and released checkpoints."""
    from piip.cli.console import out, print_json, table
    from piip.config.load import load_config, shipped_configs

    rows = [_row(name, load_config(name)) for name in shipped_configs()]
    if json:
        print_json(rows)
        return
    console = out()
    numbered = [(str(number), row) for number, row in enumerate(rows, 1)]
    figures = ((number, *_figures(row)) for number, row in numbered)
    console.print(table(("", "config", "params", "paper", "runs", "score"), figures, align="rlrrrr"))
    names = ((number, *_names(row)) for number, row in numbered if row["official"])
    console.print(table(("", "official name, accepted as an alias", "released checkpoint"), names, align="rll"))
    console.print(
        "params: of the whole network. paper, runs: GMACs for a square image of the highest resolution, as\n"
        "the published tables count and as the network multiplies, with neck and head (see `piip flops`).\n"
        "score: box/mask AP on COCO val2017, mIoU on ADE20K, top-1 on ImageNet, as published, in percent."
    )


def _row(name: str, config: Any) -> dict[str, Any]:
    from piip.flops.recorded import recorded_count
    from piip.official.flops.scripts import paper_cost

    paper, actual = paper_cost(config.model.backbone), recorded_count(name, config.model)
    official = config.official
    return {
        "name": name,
        "official": official,
        "checkpoint": f"{official}.pth" if official and official not in _NOT_RELEASED else None,
        "published": config.published.model_dump(exclude_none=True) if config.published else None,
        "resolutions": list(config.model.backbone.resolutions),
        "paper": asdict(paper) if paper else None,
        "actual": asdict(actual) if actual else None,
    }


def _figures(row: dict[str, Any]) -> list[str | None]:
    published, paper, actual = row["published"] or {}, row["paper"], row["actual"]
    scores = [f"{published[key]:.{digits}f}" for key, digits in _SCORES.items() if key in published]
    params = f"{actual['params'] / 1e6:.0f}M" if actual else None
    return [row["name"], params, _giga(paper), _giga(actual), "/".join(scores) or None]


def _giga(cost: dict[str, int] | None) -> str | None:
    if cost is None:
        return None
    giga = cost["macs"] / 1e9
    return f"{giga:.0f}" if giga >= 10 else f"{giga:.1f}"


def _names(row: dict[str, Any]) -> list[str]:
    return [row["official"], "that name + .pth" if row["checkpoint"] else "none"]
