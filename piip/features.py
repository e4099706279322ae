"""What a module says of the feature maps it returns."""

from __future__ import annotations

from typing import NamedTuple


class FeatureSpec(NamedTuple):
    """channels: C of a (B, C, H, W) map; stride: image pixels per cell."""

    channels: int
    stride: int
