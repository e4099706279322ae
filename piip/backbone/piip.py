"""The parameter-inverted image pyramid network: N branches on N resolutions of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from piip.backbone.build import (
    feature_pyramid,
    group_ends,
    in_finest_pixels,
    make_interaction,
    make_merge,
    merged_spec,
    warn_of_windows,
)
from piip.backbone.config import BackboneConfig
from piip.branches.base import Branch, Tokens
from piip.errors import ConfigError
from piip.ops import pyramid_resize


class PIIP(nn.Module):
    """N branches, finest resolution first, with interactions between neighbours, merged into one feature pyramid.

    ends: per branch and group, one past the last block of the group; an interaction follows every group.
    interactions: one per group, perhaps without the last; empty for a single branch, which is then the plain baseline.
    intermediate: merges after earlier groups, by the group's index; empty where one merged map is enough.
    merge: the merge after the last group: all branches' maps (B, H, W, C) -> (B, C, H, W) on the finest grid; None,
    with no pyramid either, leaves the branches' own tokens.
    pyramid: the merged maps, in the order they were taken -> the feature pyramid, a list of maps, finest first.
    specs: channels and stride, in pixels of the finest image, of the returned maps.
    """

    mixed_precision = True  # as in `Head`

    def __init__(self, config: BackboneConfig, *, last_interaction: bool = True, feature_levels: bool = True) -> None:
        """The network of a config, freshly initialised.

        last_interaction: false leaves out the one behind the last blocks, which only maps take part in.
        feature_levels: false leaves a single merged map as it is, without a feature pyramid.
        Raises ConfigError where interactions, outputs and the branches' widths do not fit each other.
        """
        super().__init__()
        branches = [branch.build() for branch in config.branches]
        for branch, settings in zip(branches, config.branches, strict=True):
            branch.freeze(settings.freeze)
        warn_of_windows(config, branches)
        self.resolutions = config.resolutions
        self.branches = cast("list[Branch]", nn.ModuleList(branches))
        self.ends = group_ends(config, [branch.depth for branch in branches])
        # The maps of all branches after each group of blocks, finest branch first.
        groups = [
            [branch.specs[stop - 1] for branch, stop in zip(branches, stops, strict=True)]
            for stops in zip(*self.ends, strict=True)
        ]
        exchanging = groups if last_interaction else groups[:-1]
        self.interactions = nn.ModuleList(
            make_interaction(specs, config.interaction) for specs in exchanging if len(specs) > 1
        )
        self.intermediate = nn.ModuleDict()
        self.merge: nn.Module | None = None
        self.pyramid: nn.Module | None = None
        self.specs = in_finest_pixels(groups[-1], config.resolutions)
        if not config.merge:
            return
        if config.outputs and config.outputs[-1] >= len(groups) - 1:
            raise ConfigError(f"model.backbone.outputs: name interactions before the last, 0 to {len(groups) - 2}")
        light = bool(config.outputs)
        for group in config.outputs:
            self.intermediate[str(group)] = make_merge(groups[group], config, light=light)
        self.merge = make_merge(groups[-1], config, light=light)
        merged = [merged_spec(groups[group], config) for group in (*config.outputs, -1)]
        if feature_levels:
            self.pyramid, self.specs = feature_pyramid(merged, config)
        else:
            self.pyramid, self.specs = nn.Identity(), merged

    def forward(
        self,
        images: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        valid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor] | list[Tokens]:
        """Images (B, 3, H, W), normalised, as the finest branch sees them -> maps (B, C, H/s, W/s), finest first.

        Images may be uint8 too, with mean and std (RGB in 0..255) and the valid (h, w) of each, beyond which it is
        padding; they are then normalised in the pass that makes the image pyramid.
        Without a merge it returns the tokens of every branch, their maps (B, H, W, C) and prefix tokens (B, P, C).
        """
        factors = [resolution / self.resolutions[0] for resolution in self.resolutions]
        # The official code rescales by factor, not to a size; at odd products the two differ in their sampling step.
        levels = pyramid_resize(images, scale_factors=factors, mean=mean, std=std, valid_sizes=valid_sizes)
        tokens = [branch.embed(level) for branch, level in zip(self.branches, levels, strict=True)]
        maps = [x.map for x in tokens]
        starts: tuple[int, ...] = (0,) * len(maps)
        intermediate = {int(name): merge for name, merge in self.intermediate.items()}
        merged: list[Tensor] = []
        for group, stops in enumerate(zip(*self.ends, strict=True)):
            spans = zip(self.branches, tokens, starts, stops, strict=True)
            tokens = [branch.run_blocks(x, start, stop) for branch, x, start, stop in spans]
            maps = [x.map for x in tokens]
            if group < len(self.interactions):
                maps = self.interactions[group](maps)
                tokens = [x._replace(map=exchanged) for x, exchanged in zip(tokens, maps, strict=True)]
            if group in intermediate:
                merged.append(intermediate[group](maps))
            starts = stops
        if self.merge is None or self.pyramid is None:
            return tokens
        return self.pyramid([*merged, self.merge(maps)])

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter that layer-wise learning-rate decay scales, by name (see `piip.engine.optim`).

        Blocks of a shallower branch are spread over the depth of the deepest one; where the quotient is fractional, it
        is rounded down, as the released optimizer does.
        """
        depth = self.depth
        layers = {}
        for index, branch in enumerate(self.branches):
            for name, _ in branch.named_parameters():
                layer = branch.layer_of(name)
                if layer is not None:
                    layers[f"branches.{index}.{name}"] = layer * depth // branch.depth
        return layers

    @property
    def depth(self) -> int:
        """Blocks of the deepest branch that layer-wise decay scales; 0 if it scales none."""
        scaled = [
            branch.depth
            for branch in self.branches
            if any(branch.layer_of(name) is not None for name, _ in branch.named_parameters())
        ]
        return max(scaled, default=0)
