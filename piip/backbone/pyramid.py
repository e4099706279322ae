"""From merged maps to the feature pyramid of the backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec


class SimpleFeaturePyramid(nn.Module):
    """Four scales from maps of one scale: 4 times, twice, once and half of it (Li et al., 2022, "ViTDet").

    specs: the maps that come in, of one stride: a single map, or one for each scale.
    norm: what follows the first upsampling: group norm in networks of several branches, layer norm over channels in the
    plain ViT. finest: whether the map of 4 times the resolution is made.
    Raises ConfigError if the stride is no multiple of 4, or of 2 without the finest map.
    """

    def __init__(self, *, specs: Sequence[FeatureSpec], norm: Literal["group", "layer"], finest: bool) -> None:
        super().__init__()
        levels = list(specs) * 4 if len(specs) == 1 else list(specs)
        enlarged = 4 if finest else 2
        if levels[0].stride % enlarged:
            raise ConfigError(
                f"model.backbone: the pyramid enlarges maps {enlarged} times, but those of the finest branch have a "
                f"stride of {levels[0].stride} pixels; set its patch_size to a multiple of {enlarged}, such as 16"
            )
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
