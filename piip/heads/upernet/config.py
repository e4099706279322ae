"""The settings of UperNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from piip.features import FeatureSpec
from piip.heads.config import SegmentationHeadConfig

if TYPE_CHECKING:
    from piip.heads.upernet.head import UperNet


class UperNetConfig(SegmentationHeadConfig):
    """UperNet (Xiao et al., 2018) and an auxiliary FCN, with the settings of the released configs as defaults."""

    type: Literal["upernet"] = "upernet"
    num_classes: int = Field(150, gt=0)
    channels: int = Field(1536, gt=0)
    pool_scales: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 2, 3, 6), description="cells per side of the last level's pooled maps"
    )
    dropout: float = Field(0.1, ge=0, lt=1)
    auxiliary_level: int | None = Field(2, ge=0, description="map that a second, simple head works on; null for none")
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the second head's loss")

    def build(self, specs: Sequence[FeatureSpec]) -> UperNet:
        from piip.heads.upernet.head import UperNet

        return UperNet(self, specs)
