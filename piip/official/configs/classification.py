"""The settings of the official classification configs, by our keys: these files hold the backbone and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piip.official.configs.backbone import PYRAMIDS, backbone_settings

# How that code's InternViT6B differs from the one of the detectors where a config says nothing.
_DEFAULTS = {"norm_layer_type": "ln", "qk_normalization": False, "use_cls_token": True, "drop_rate": 0.0}


def classification_settings(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    """The settings of an official classification config by our keys; what has no counterpart is added to unmapped.

    Raises ValueError and the like where they are those of no PIIP network with a classifier in every branch.
    """
    backbone = dict(official["model"]["backbone"])
    names = [name for name in ("branch4", "branch3", "branch2", "branch1") if name in backbone]
    if not backbone.pop("separate_head", False):
        raise ValueError("separate_head is not set")
    class_tokens = []
    for name in names:
        branch = _DEFAULTS | backbone[name]
        kind = branch.pop("model_type", "deit")
        class_tokens.append(branch.pop("use_cls_token"))
        if branch.pop("drop_rate"):
            unmapped.append(f"model.backbone.{name}.drop_rate")
        if (kind == "deit") != ("deit" in branch["pretrained"]):
            unmapped.append(f"model.backbone.{name}.model_type {kind} for weights of another class")
        # Their position embeddings have the grid of the branch's own image.
        backbone[name] = branch | {"real_size": branch["img_size"], "pretrain_img_size": branch["img_size"]}
    settings = backbone_settings({"type": PYRAMIDS[len(names) - 2], **backbone}, unmapped)
    for branch, class_token in zip(settings["branches"], class_tokens, strict=True):
        branch |= {"class_token": class_token, "drop_path_schedule": "constant"}
    size = {"size": settings["resolutions"][0]}
    return {
        "model": {"backbone": settings | {"merge": False}, "neck": {"type": "none"}, "head": {"type": "classifier"}},
        "data": {"train_transforms": size, "val_transforms": dict(size)},
    }
