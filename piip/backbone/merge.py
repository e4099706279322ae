"""Branch merging (PIIP paper, section 3.3): one feature map from all branches."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Merge(nn.Module):
    """Projects every branch to one width, resizes to the finest grid, and adds them with learned weights.

    in_channels: per branch, finest first; out_channels: the width that comes out, that of the last branch.
    light: one convolution instead of two, and none for the last branch, as released where a merge follows several
    interactions.
    """

    def __init__(self, *, in_channels: list[int], out_channels: int, light: bool = False) -> None:
        super().__init__()
        if light:
            convolved = [*([channels] for channels in in_channels[:-1]), []]
        else:
            convolved = [[channels, out_channels] for channels in in_channels]
        self.projections = nn.ModuleList(_projection(channels, out_channels) for channels in convolved)
        # 0-d parameters, one a branch: the released optimizer decays them, and 1-d ones it would not.
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in in_channels)

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


def _projection(in_channels: list[int], out_channels: int) -> nn.Sequential:
    """A 3x3 convolution from each of in_channels, with group norm and ReLU; without any, only norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in in_channels:
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * out_channels)))
        layers += [conv, nn.GroupNorm(32, out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers) if layers else nn.Sequential(nn.GroupNorm(32, out_channels), nn.ReLU())
