"""How the parts of the network fit each other: groups of blocks, merges, and the feature pyramid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from torch import nn

from piip.backbone.config import BackboneConfig, InteractionConfig
from piip.backbone.interaction import Interaction
from piip.backbone.merge import NORM_GROUPS, Merge, OnlyBranch
from piip.backbone.pyramid import SimpleFeaturePyramid
from piip.branches.base import Branch
from piip.errors import ConfigError
from piip.features import FeatureSpec

_log = logging.getLogger(__name__)


def warn_of_windows(config: BackboneConfig, branches: Sequence[Branch]) -> None:
    """Logs which attention windows are larger than the map of their branch, and which blocks do not exist."""
    for index, (settings, branch) in enumerate(zip(config.branches, branches, strict=True)):
        window, blocks = getattr(settings, "window_size", 0), getattr(settings, "global_blocks", ())
        size, where = config.resolutions[index], f"model.backbone.branches.{index}"
        if window > (cells := -(-size // branch.specs[0].stride)):
            _log.warning(
                "%s: windows of %d tokens are larger than the map, %d tokens for %d pixels, so that attention is "
                "global; set window_size to 0, or raise the resolution", where, window, cells, size,
            )  # fmt: skip
        if beyond := [block for block in blocks if block >= branch.depth]:
            _log.warning("%s: global_blocks %s: there are blocks 0 to %d", where, beyond, branch.depth - 1)


def in_finest_pixels(specs: Sequence[FeatureSpec], resolutions: Sequence[int]) -> list[FeatureSpec]:
    """The branches' own maps, each stride brought from pixels of the branch's image to those of the finest one."""
    scales = [resolutions[0] / resolution for resolution in resolutions]
    return [FeatureSpec(spec.channels, round(spec.stride * scale)) for spec, scale in zip(specs, scales, strict=True)]


def make_interaction(specs: Sequence[FeatureSpec], config: InteractionConfig) -> Interaction:
    """The interaction between maps of these specs, one per branch. Raises ConfigError for widths it cannot have."""
    for dim in (spec.channels for spec in specs):
        values = int(dim * config.value_ratio) if config.attention == "deformable" else dim
        if dim % config.num_heads or values % config.num_heads or not values:
            raise ConfigError(
                f"model.backbone.interaction: {config.num_heads} heads need a branch and its attention values to have "
                f"widths that are multiples of {config.num_heads}, got {dim} and {values}; change num_heads or "
                "value_ratio"
            )
        if config.ffn_ratio and not int(dim * config.ffn_ratio):
            raise ConfigError(
                f"model.backbone.interaction.ffn_ratio: {config.ffn_ratio} of a branch's {dim} channels is none; "
                "0 leaves the FFN out"
            )
    return Interaction(dims=[spec.channels for spec in specs], config=config)


def make_merge(specs: Sequence[FeatureSpec], config: BackboneConfig, *, light: bool) -> nn.Module:
    """The merge of maps of these specs, one per branch. Raises ConfigError for a width that it cannot norm."""
    if len(specs) == 1:
        return OnlyBranch()
    dims, width = [spec.channels for spec in specs], merged_spec(specs, config).channels
    if width % NORM_GROUPS:
        raise ConfigError(
            f"model.backbone.branches: branches are merged at the width of the last one, which must be a multiple of "
            f"{NORM_GROUPS}, got {width}; model.backbone.merge_width sets another"
        )
    return Merge(dims=dims, width=width, kind="linear" if config.merge == "linear" else "light" if light else "full")


def merged_spec(specs: Sequence[FeatureSpec], config: BackboneConfig) -> FeatureSpec:
    """What `make_merge` makes of maps of these specs, on the grid of the first."""
    alone = len(specs) == 1
    return FeatureSpec(specs[-1].channels if alone else config.merge_width or specs[-1].channels, specs[0].stride)


def feature_pyramid(merged: list[FeatureSpec], config: BackboneConfig) -> tuple[nn.Module, list[FeatureSpec]]:
    """What makes a feature pyramid of merged maps, and the maps of that pyramid."""
    strides = [spec.stride for spec in merged]
    if len(set(strides)) == 1:
        # The released single-branch baselines normalise over channels where the merged networks use groups.
        norm: Literal["group", "layer"] = "layer" if len(config.branches) == 1 else "group"
        pyramid = SimpleFeaturePyramid(specs=merged, norm=norm, finest=config.finest_level)
        return pyramid, pyramid.specs
    if strides != [strides[0] * 2**level for level in range(len(strides))]:
        raise ConfigError(
            f"model.backbone.outputs: the finest branch has strides {strides} there; they must double: name other "
            "interactions, or set model.backbone.outputs=[] to scale all levels from one map"
        )
    # The merged maps of a convolutional network are a pyramid already.
    return nn.Identity(), merged


def group_ends(config: BackboneConfig, depths: Sequence[int]) -> list[tuple[int, ...]]:
    """Per branch, one past the last block of each group of blocks, an interaction following every group.

    A number of interactions is spread evenly over every branch; a list names, per branch, the block each one follows.
    A single branch has nothing to interact with and is one group, unless a list cuts it. Raises ConfigError when a
    branch is too shallow, or the list does not end with its last block.
    """
    if len(depths) == 1 and isinstance(config.interactions, int):
        return [(depths[0],)]
    if isinstance(config.interactions, int):
        count = config.interactions
        if count < 1 or count > min(depths):
            most = min(depths)
            raise ConfigError(f"model.backbone.interactions: {count} interactions need 1 to {most} blocks per branch")
        return [tuple((index + 1) * depth // count for index in range(count)) for depth in depths]
    ends = [tuple(block + 1 for block in blocks) for blocks in config.interactions]
    same_count = len({len(blocks) for blocks in ends}) == 1 and len(ends) == len(depths)
    if not same_count or any(
        not blocks or blocks[-1] != depth or sorted(set(blocks)) != list(blocks)
        for blocks, depth in zip(ends, depths, strict=True)
    ):
        last = ", ".join(str(depth - 1) for depth in depths)
        raise ConfigError(
            "model.backbone.interactions: give one increasing list per branch, equally long, ending with the branch's "
            f"last block ({last})"
        )
    return ends
