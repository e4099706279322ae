"""The neck of heads that need none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from piip.features import FeatureSpec
from piip.necks.base import Neck


class NoNeck(Neck):
    """The maps go to the head as they are. specs: the maps that come in."""

    def __init__(self, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = list(specs)

    def forward(self, features: list[Any]) -> list[Any]:
        """Maps (B, C, H, W), or the tokens of the branches -> the same."""
        return features
