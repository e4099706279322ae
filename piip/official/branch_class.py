"""The classes that the official code builds branches of: one rule, for its key tables, its configs and its counts."""

from __future__ import annotations

from typing import Literal

from piip.backbone.config import BackboneConfig
from piip.branches.config import BranchConfig
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig
from piip.errors import ConfigError

# vit_models, InternViT6B, BEiT, UnifiedBertEncoder and ConvNextHFWrapper there.
BranchClass = Literal["deit", "internvit", "beit", "uniperceiver", "convnext"]


def branch_class(branch: BranchConfig) -> BranchClass | None:
    """The official class that builds a branch of these settings; None for a type of branch that it has no class for.

    deit and internvit compute the same; deit has layer scale, and stochastic depth that is constant over the blocks.
    """
    if isinstance(branch, ConvNeXtConfig):
        return "convnext"
    if not isinstance(branch, ViTConfig):
        return None
    if branch.embed_norm:
        return "uniperceiver"
    if branch.position == "relative":
        return "beit"
    return "internvit" if branch.drop_path_schedule == "linear" or branch.layer_scale is None else "deit"


def branch_classes(backbone: BackboneConfig) -> list[BranchClass]:
    """The official class of every branch, finest first. Raises ConfigError where a branch has none."""
    classes = []
    for branch in backbone.branches:
        found = branch_class(branch)
        if found is None:
            raise ConfigError(
                f"the official code has no branches of type {branch.type}: it can neither count nor load one"
            )
        classes.append(found)
    return classes


def class_of_pretrained(file: str) -> BranchClass:
    """The class that the official code gives a branch in a pyramid: it goes by the name of its pretrained weights."""
    names: dict[str, BranchClass] = {
        "deit": "deit",
        "beit": "beit",
        "perceiver": "uniperceiver",
        "convnext": "convnext",
    }
    return next((found for part, found in names.items() if part in file), "internvit")
