"""The feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from piip.features import FeatureSpec
from piip.necks.base import Neck, level_specs
from piip.necks.config import FPNConfig


class FPN(Neck):
    """Feature pyramid network (Lin et al., 2017, "Feature Pyramid Networks for Object Detection").

    specs: the maps that come in, finest first. Levels beyond them take every second cell of the level before.
    Raises ConfigError if there are fewer levels than maps coming in.
    """

    def __init__(self, config: FPNConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        out_channels, levels = config.out_channels, config.levels
        self.specs = level_specs(specs, out_channels, levels)
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, out_channels, 1) for spec in specs)
        self.output = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in specs)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.xavier_uniform_(parameter)

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
