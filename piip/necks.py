"""Necks: from the maps of a backbone to the pyramid that a head works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec


class SimplePyramid(nn.Module):
    """Four scales from maps of one scale: 4 times, twice, once and half of it (Li et al., 2022, "ViTDet").

    specs: the maps that come in, of one stride that is divisible by 4: a single map, or one for each scale.
    norm: what follows the first upsampling: "group" in the pyramid networks, "layer" over channels in the plain ViT.
    finest: whether the map of 4 times the resolution is wanted.
    """

    def __init__(
        self, *, specs: Sequence[FeatureSpec], norm: Literal["group", "layer"] = "group", finest: bool = True
    ) -> None:
        super().__init__()
        levels = list(specs) * 4 if len(specs) == 1 else list(specs)
        first, second = levels[0].channels, levels[1].channels
        strides = [int(spec.stride * scale) for spec, scale in zip(levels, (1 / 4, 1 / 2, 1, 2), strict=True)]
        self.specs = [FeatureSpec(spec.channels, stride) for spec, stride in zip(levels, strides, strict=True)]
        self.up4: nn.Sequential | None = None
        if finest:
            self.up4 = nn.Sequential(
                nn.ConvTranspose2d(first, first, 2, stride=2),
                nn.GroupNorm(32, first) if norm == "group" else LayerNorm2d(first, eps=1e-6),
                nn.GELU(),
                nn.ConvTranspose2d(first, first, 2, stride=2),
            )
        else:
            del self.specs[0]
        self.up2 = nn.ConvTranspose2d(second, second, 2, stride=2)
        self.down2 = nn.MaxPool2d(2)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=math.sqrt(2 / (4 * parameter.shape[1])))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map (B, C, H, W) or four -> (B, C, 4H, 4W), (B, C, 2H, 2W), (B, C, H, W), (B, C, H // 2, W // 2)."""
        first, second, third, last = maps * 4 if len(maps) == 1 else maps
        finest = [] if self.up4 is None else [self.up4(first)]
        return [*finest, self.up2(second), third, self.down2(last)]


class GivenPyramid(nn.Module):
    """The maps as they come: those of a convolutional network are a pyramid already, and some heads need no neck.

    specs: the maps that come in.
    """

    def __init__(self, *, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = list(specs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> the same."""
        return maps


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., 2017, "Feature Pyramid Networks for Object Detection").

    specs: the maps that come in, finest first.
    out_channels: width of every map that goes out.
    levels: how many maps go out; those beyond the incoming ones take every second cell of the one before.
    Raises ConfigError if there are fewer levels than maps coming in.
    """

    def __init__(self, *, specs: Sequence[FeatureSpec], out_channels: int = 256, levels: int = 5) -> None:
        super().__init__()
        if levels < len(specs):
            raise ConfigError(
                f"an FPN on {len(specs)} feature maps needs neck.levels of at least {len(specs)}, got {levels}"
            )
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, out_channels, 1) for spec in specs)
        self.output = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in specs)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.xavier_uniform_(parameter)
        strides = [spec.stride for spec in specs]
        strides += [strides[-1] * 2**extra for extra in range(1, levels - len(specs) + 1)]
        self.specs = [FeatureSpec(out_channels, stride) for stride in strides]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> `levels` maps of `out_channels`, finest first."""
        maps = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for fine in range(len(maps) - 2, -1, -1):
            # By size, not by factor: a coarse map is not always half as large (floor and ceil on the way down).
            maps[fine] = maps[fine] + F.interpolate(maps[fine + 1], size=maps[fine].shape[2:], mode="nearest")
        maps = [conv(x) for conv, x in zip(self.output, maps, strict=True)]
        while len(maps) < len(self.specs):
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return maps


class ChannelMapper(nn.Module):
    """One width for all maps, without mixing them (mmdetection's neck for Deformable-DETR and its successors).

    specs: the maps that come in, finest first.
    out_channels: width of every map that goes out, a multiple of 32.
    levels: how many maps go out; those beyond the incoming ones are convolved to half the resolution of the one before.
    Raises ConfigError if there are fewer levels than maps coming in.
    """

    def __init__(self, *, specs: Sequence[FeatureSpec], out_channels: int = 256, levels: int = 4) -> None:
        super().__init__()
        if levels < len(specs):
            raise ConfigError(
                f"channel_mapper on {len(specs)} feature maps needs neck.levels of at least {len(specs)}; got {levels}"
            )
        widths = [specs[-1].channels] + [out_channels] * (levels - len(specs) - 1)
        self.convs = nn.ModuleList(_conv_norm(spec.channels, out_channels, 1, stride=1) for spec in specs)
        self.extra = nn.ModuleList(
            _conv_norm(width, out_channels, 3, stride=2) for width in widths[: levels - len(specs)]
        )
        strides = [spec.stride for spec in specs]
        strides += [strides[-1] * 2**extra for extra in range(1, levels - len(specs) + 1)]
        self.specs = [FeatureSpec(out_channels, stride) for stride in strides]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> `levels` maps of `out_channels`, finest first."""
        maps = [conv(x) for conv, x in zip(self.convs, features, strict=True)]
        x = features[-1]  # the first extra map comes from the last one that came in, not from its mapped version
        for conv in self.extra:
            x = conv(x)
            maps.append(x)
        return maps


def _conv_norm(in_channels: int, out_channels: int, kernel: int, *, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, nn.GroupNorm(32, out_channels))
