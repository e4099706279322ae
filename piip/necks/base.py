"""What a model knows of a neck."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from piip.features import FeatureSpec


class Neck(nn.Module):
    """Makes the maps of a head, which `specs` describe, from those of the backbone."""

    specs: list[FeatureSpec]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W), finest first -> the head's maps (B, C', H', W'), finest first."""
