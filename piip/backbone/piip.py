"""The parameter-inverted image pyramid network: N branches on N resolutions of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from piip.backbone.interaction import Interaction
from piip.branches.base import Branch, Tokens
from piip.features import FeatureSpec
from piip.ops import pyramid_resize


class PIIP(nn.Module):
    """N branches, finest resolution first, with interactions between neighbours, merged into one feature pyramid.

    branches: the backbones, finest first.
    resolutions: longer side of the image each branch sees, in pixels; only their ratios matter.
    ends: per branch and group, one past the last block of the group; an interaction follows every group.
    interactions: one per group, perhaps without the last; empty for a single branch, which is then the plain baseline.
    intermediate: merges after earlier groups, by the group's index; empty where one merged map is enough.
    merge: the merge after the last group: all branches' maps (B, H, W, C) -> (B, C, H, W) on the finest grid; None,
    with no pyramid either, leaves the branches' own tokens.
    pyramid: the merged maps, in the order they were taken -> the feature pyramid, a list of maps, finest first.
    specs: channels and stride, in pixels of the finest image, of the returned maps.
    """

    mixed_precision = True  # as in `Head`

    def __init__(
        self,
        *,
        branches: list[Branch],
        resolutions: tuple[int, ...],
        ends: list[tuple[int, ...]],
        interactions: list[Interaction],
        intermediate: dict[int, nn.Module],
        merge: nn.Module | None,
        pyramid: nn.Module | None,
        specs: list[FeatureSpec],
    ) -> None:
        super().__init__()
        self.resolutions = resolutions
        self.ends = ends
        self.branches = cast("list[Branch]", nn.ModuleList(branches))
        self.interactions = nn.ModuleList(interactions)
        self.intermediate = nn.ModuleDict({str(group): module for group, module in intermediate.items()})
        self.merge = merge
        self.pyramid = pyramid
        self.specs = specs

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
        Without a merge it returns the tokens of every branch, their maps (B, H, W, C) and class tokens.
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
