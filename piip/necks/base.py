"""What a model knows of a neck."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec


class Neck(nn.Module):
    """Makes the maps of a head, which `specs` describe, from those of the backbone."""

    specs: list[FeatureSpec]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> the head's maps (B, C', H', W'), finest first."""


def level_specs(specs: Sequence[FeatureSpec], out_channels: int, levels: int) -> list[FeatureSpec]:
    """Maps of one width: one for each map that comes in, and then each of half the resolution of the one before.

    Raises ConfigError if there are fewer levels than maps coming in.
    """
    if levels < len(specs):
        raise ConfigError(
            f"a neck on {len(specs)} feature maps needs neck.levels of at least {len(specs)}, got {levels}"
        )
    strides = [spec.stride for spec in specs]
    strides += [strides[-1] * 2**extra for extra in range(1, levels - len(specs) + 1)]
    return [FeatureSpec(out_channels, stride) for stride in strides]
