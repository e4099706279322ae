"""What a model knows of a neck."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from piip.features import FeatureSpec


class Neck(nn.Module):
    """From the maps of a backbone to those of a head, which `specs` describe."""

    specs: list[FeatureSpec]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> the head's maps (B, C', H', W'), finest first."""
