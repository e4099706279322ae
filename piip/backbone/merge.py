"""Branch merging (PIIP paper, section 3.3): one feature map from all branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32


class Merge(nn.Module):
    """Projects every branch to one width, resizes to the finest grid, and adds them with learned weights.

    dims: channels of each branch's map, finest first. width: those of the map that comes out.
    kind: full, two convolutions; light, a single one, as released where a merge follows several interactions; or
    linear, a linear layer, as in appendix A.3 of the paper. The last two leave out that of a last branch that has the
    width already.
    """

    def __init__(self, *, dims: Sequence[int], width: int, kind: Literal["full", "light", "linear"]) -> None:
        super().__init__()
        once = [1] * (len(dims) - 1) + [int(dims[-1] != width)]
        layers = [2] * len(dims) if kind == "full" else once
        project = _linear_projection if kind == "linear" else _projection
        self.projections = nn.ModuleList(project(dim, width, count) for dim, count in zip(dims, layers, strict=True))
        # 0-d parameters, one per branch: the released optimizer decays them, and 1-d ones it would not.
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in dims)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map (B, H, W, C) per branch, finest first -> (B, C, H, W) on the finest grid."""
        size = maps[0].shape[1:3]
        terms = []
        for x, projection, weight in zip(maps, self.projections, self.weights, strict=True):
            x = projection(channels_first(x))
            if x.shape[2:] != size:
                x = F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False).to(x.dtype)
            terms.append(x * weight)
        return reduce(torch.add, terms)


class OnlyBranch(nn.Module):
    """The merge of a single branch: its map as it is."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """One map (B, H, W, C) -> (B, C, H, W)."""
        (x,) = maps
        return channels_first(x)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), contiguous: on GPUs group norm would copy any other layout."""
    return x.permute(0, 3, 1, 2).contiguous()


def _linear_projection(dim: int, out_dim: int, layers: int) -> nn.Sequential:
    """A linear layer from dim to out_dim channels, where there is one, and group norm."""
    linear = [nn.Conv2d(dim, out_dim, 1) for _ in range(layers)]
    for layer in linear:
        nn.init.trunc_normal_(layer.weight, std=0.02)
    return nn.Sequential(*linear, nn.GroupNorm(NORM_GROUPS, out_dim))


def _projection(dim: int, out_dim: int, convs: int) -> nn.Sequential:
    """`convs` 3x3 convolutions from dim to out_dim channels, each with group norm and ReLU; for 0 these alone."""
    if not convs:
        return nn.Sequential(nn.GroupNorm(NORM_GROUPS, out_dim), nn.ReLU())
    layers: list[nn.Module] = []
    for index in range(convs):
        conv = nn.Conv2d(out_dim if index else dim, out_dim, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * out_dim)))
        layers += [conv, nn.GroupNorm(NORM_GROUPS, out_dim), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
