"""What is particular to the settings of the official segmentation configs, by our keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from piip.official.configs.pipeline import IGNORED, steps


def with_crop_grids(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone with the sizes that its position embeddings have: the crop's, not the pretrained network's."""
    changed = dict(backbone)
    for name, branch in backbone.items():
        if isinstance(branch, Mapping) and "img_size" in branch:
            changed[name] = {**branch, "pretrain_img_size": branch["img_size"]}
    if "img_size" in backbone:
        changed["pretrain_img_size"] = backbone["img_size"]
    return changed


def upernet_settings(model: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    """The settings of both heads of mmsegmentation's EncoderDecoder. Raises ValueError for a head of another type."""
    head, second, test = model["decode_head"], model.get("auxiliary_head"), model["test_cfg"]
    if head["type"] != "UPerHead":
        raise ValueError(f"decode head {head['type']}")
    settings = {
        "type": "upernet",
        "num_classes": head["num_classes"],
        "channels": head["channels"],
        "pool_scales": list(head.get("pool_scales", (1, 2, 3, 6))),
        "dropout": head.get("dropout_ratio", 0.1),
        "auxiliary_level": second["in_index"] if second else None,
        "window": None,
    }
    _check("decode_head", head, {"in_index": [0, 1, 2, 3]}, unmapped)
    if second:
        settings["auxiliary_weight"] = second["loss_decode"]["loss_weight"]
        same = {key: head[key] for key in ("num_classes", "channels", "dropout_ratio") if key in head}
        _check("auxiliary_head", second, {"type": "FCNHead", "num_convs": 1, "concat_input": False, **same}, unmapped)
    if test["mode"] == "slide":
        settings |= {"window": test["crop_size"][0], "stride": test["stride"][0]}
        _check("test_cfg", test, {key: [test[key][0]] * 2 for key in ("crop_size", "stride")}, unmapped)
    return settings


def _check(where: str, settings: Mapping[str, Any], only: Mapping[str, Any], unmapped: list[str]) -> None:
    """Lists what is set to a value that has no counterpart."""
    for key, value in {"align_corners": False, **only}.items():
        found = settings.get(key, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            unmapped.append(f"model.{where}.{key} {found}")
    for part, known in (("norm_cfg", ("SyncBN", "BN")), ("loss_decode", ("CrossEntropyLoss",))):
        if part in settings and settings[part]["type"] not in known:
            unmapped.append(f"model.{where}.{part} {settings[part]['type']}")


def segmentation_transforms(pipeline: Sequence[Mapping[str, Any]], unmapped: list[str]) -> dict[str, Any]:
    """The transforms of images and label maps, from mmsegmentation's steps."""
    result: dict[str, Any] = {"type": "segmentation"}
    for step in steps(pipeline):
        kind = step["type"]
        if kind == "Resize":
            result["resize"] = sorted(step["img_scale"], reverse=True)
            if "ratio_range" in step:
                result["ratio_range"] = list(step["ratio_range"])
        elif kind == "SETR_Resize":  # the shorter side, whatever the longer one becomes
            result["resize"] = [None, max(min(step["img_scale"]), step["crop_size"][0])]
        elif kind == "RandomCrop":
            result |= {"crop": max(step["crop_size"]), "crop_max_share": step.get("cat_max_ratio", 1.0)}
        elif kind == "RandomFlip":
            result |= {"flip": step["prob"]} if step.get("prob") else {}
        elif kind == "PhotoMetricDistortion":
            result["photometric"] = True
        elif kind == "Pad":
            result["pad_divisor"] = max(step["size"])
        elif kind not in IGNORED:
            unmapped.append(f"data pipeline: {kind}")
    return result
