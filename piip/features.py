"""What modules say of the feature maps they return, and the label that is none."""

from __future__ import annotations

from typing import NamedTuple

# What a label map (H, W) uint8 has where a pixel has no label.
NO_LABEL = 255


class FeatureSpec(NamedTuple):
    """channels: C of a (B, C, H, W) map; stride: image pixels per cell."""

    channels: int
    stride: int
