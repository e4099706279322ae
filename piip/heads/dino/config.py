"""The settings of DINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.features import FeatureSpec
from piip.heads.config import DetectionHeadConfig

if TYPE_CHECKING:
    from piip.heads.dino.head import DINO


class DINOConfig(DetectionHeadConfig):
    """DINO (Zhang et al., 2023) with the settings of the released configs as defaults; on a `channel_mapper` neck."""

    type: Literal["dino"] = "dino"
    num_classes: int = Field(80, gt=0)
    num_queries: int = Field(900, gt=0, description="cells of the encoder that become queries")
    encoder_layers: int = Field(6, ge=0)
    decoder_layers: int = Field(6, gt=0)
    num_heads: int = Field(8, gt=0)
    points: int = Field(4, gt=0, description="points an attention head samples in every map")
    ffn_dim: int = Field(2048, gt=0)
    denoising_queries: int = Field(100, gt=0, description="noised objects to reconstruct per image, in whole groups")
    label_noise: float = Field(0.5, ge=0, le=2, description="twice the share of their labels that are drawn anew")
    box_noise: float = Field(1.0, ge=0, description="most their sides move, in half widths and heights")
    max_detections: int = Field(300, gt=0)
    mixed_precision: bool = Field(
        True, description="false: under bf16 all of the head stays in float32, as released, at a higher cost"
    )
    checkpoint_activations: bool = Field(
        False, description="encoder layers keep only their input for the backward pass and compute again"
    )

    def build(self, specs: Sequence[FeatureSpec]) -> DINO:
        from piip.heads.dino.head import DINO

        return DINO(self, specs)
