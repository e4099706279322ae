"""The neck of DINO: all maps brought to one width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from piip.features import FeatureSpec
from piip.necks.base import Neck, level_specs
from piip.necks.config import ChannelMapperConfig


class ChannelMapper(Neck):
    """One width for all maps, without mixing them (mmdetection's neck for Deformable-DETR and its successors).

    specs: the maps that come in, finest first. Levels beyond them are convolved to half the resolution of the last.
    Raises ConfigError if there are fewer levels than maps coming in.
    """

    def __init__(self, config: ChannelMapperConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        out_channels, levels = config.out_channels, config.levels
        self.specs = level_specs(specs, out_channels, levels)
        widths = [specs[-1].channels] + [out_channels] * (levels - len(specs) - 1)
        self.convs = nn.ModuleList(_conv_norm(spec.channels, out_channels, 1, stride=1) for spec in specs)
        self.extra = nn.ModuleList(
            _conv_norm(width, out_channels, 3, stride=2) for width in widths[: levels - len(specs)]
        )

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
