"""Assembles the network from its config: branches, interactions, merges and feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from piip.backbone.config import BackboneConfig, InteractionConfig
from piip.backbone.interaction import CrossBranchAttention, Interaction, InteractionUnit
from piip.backbone.merge import Merge, OnlyBranch
from piip.backbone.piip import PIIP
from piip.backbone.pyramid import GivenPyramid, SimplePyramid
from piip.errors import ConfigError
from piip.features import FeatureSpec


def build_backbone(config: BackboneConfig, *, last_interaction: bool = True) -> PIIP:
    """The branches, interactions, merges and feature pyramid of a config.

    last_interaction: false leaves out the one behind the last blocks, which only maps take part in.
    """
    branches = [branch.build() for branch in config.branches]
    ends = group_ends(config, [branch.depth for branch in branches])
    groups = [[b.specs[stop - 1] for b, stop in zip(branches, stops, strict=True)] for stops in zip(*ends, strict=True)]
    several = len(branches) > 1
    interactions = [_interaction(specs, config.interaction) for specs in groups] if several else []
    if not config.merge:
        kept = interactions if last_interaction else interactions[:-1]
        return PIIP(branches=branches, resolutions=config.resolutions, ends=ends, interactions=kept)
    if config.outputs and config.outputs[-1] >= len(groups) - 1:
        raise ConfigError(f"model.backbone.outputs: name interactions before the last, 0 to {len(groups) - 2}")
    merges = [
        _merge(groups[group], light=bool(config.outputs)) if several else OnlyBranch()
        for group in (*config.outputs, len(groups) - 1)
    ]
    return PIIP(
        branches=branches,
        resolutions=config.resolutions,
        ends=ends,
        interactions=interactions,
        intermediate=dict(zip(config.outputs, merges, strict=False)),
        merge=merges[-1],
        pyramid=_pyramid([groups[group] for group in (*config.outputs, len(groups) - 1)], config),
    )


def _merge(specs: list[FeatureSpec], *, light: bool) -> Merge:
    channels = [spec.channels for spec in specs]
    return Merge(in_channels=channels, out_channels=channels[-1], light=light)


def _interaction(specs: list[FeatureSpec], config: InteractionConfig) -> Interaction:
    """The exchange between all neighbours, whose maps have these specs, finest first."""
    settings = config.model_dump()
    return Interaction(
        [
            InteractionUnit(
                to_fine=CrossBranchAttention(dim=fine.channels, source_dim=coarse.channels, **settings),
                to_coarse=CrossBranchAttention(dim=coarse.channels, source_dim=fine.channels, **settings),
            )
            for fine, coarse in pairwise(specs)
        ]
    )


def _pyramid(groups: list[list[FeatureSpec]], config: BackboneConfig) -> SimplePyramid | GivenPyramid:
    """The pyramid over maps merged after these groups, each given by its branches' maps.

    A merged map has the width of the last branch and the grid of the first.
    """
    merged = [FeatureSpec(specs[-1].channels, specs[0].stride) for specs in groups]
    strides = [spec.stride for spec in merged]
    if len(set(strides)) == 1:
        # The released single-branch baselines normalise over channels where the merged networks use groups.
        norm: Literal["group", "layer"] = "layer" if len(config.branches) == 1 else "group"
        return SimplePyramid(specs=merged, norm=norm, finest=config.finest_level)
    if strides != [strides[0] * 2**level for level in range(len(strides))]:
        raise ConfigError(
            f"model.backbone.outputs: the finest branch has strides {strides} there; they must double: name other "
            "interactions, or set model.backbone.outputs=[] to scale all levels from one map"
        )
    return GivenPyramid(specs=merged)


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
            raise ConfigError(f"model.backbone.interactions: {count} interactions need 1 to {most} blocks a branch")
        return [tuple((index + 1) * depth // count for index in range(count)) for depth in depths]
    ends = [tuple(block + 1 for block in blocks) for blocks in config.interactions]
    same_count = len({len(blocks) for blocks in ends}) == 1 and len(ends) == len(depths)
    if not same_count or any(
        not blocks or blocks[-1] != depth or sorted(set(blocks)) != list(blocks)
        for blocks, depth in zip(ends, depths, strict=True)
    ):
        last = ", ".join(str(depth - 1) for depth in depths)
        raise ConfigError(
            "model.backbone.interactions: give one increasing list a branch, equally long, ending with the branch's "
            f"last block ({last})"
        )
    return ends
