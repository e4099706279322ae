"""The settings of UperNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from piip.features import FeatureSpec
from piip.heads.config import HeadConfig

if TYPE_CHECKING:
    from piip.heads.upernet.head import UperNet
    from piip.results.label_maps import LabelMapWriter


class UperNetConfig(HeadConfig):
    """UperNet (Xiao et al., 2018) and an auxiliary FCN, with the settings of the released configs as defaults."""

    in_pixels: ClassVar = ("window", "stride")
    task: ClassVar = "segmentation"
    type: Literal["upernet"] = "upernet"
    num_classes: int = Field(150, gt=0)
    channels: int = Field(1536, gt=0)
    pool_scales: tuple[int, ...] = Field((1, 2, 3, 6), description="cells a side of the pooled maps of the last level")
    dropout: float = Field(0.1, ge=0, lt=1)
    auxiliary_level: int | None = Field(2, ge=0, description="map that a second, simple head works on; null for none")
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the second head's loss")
    window: int | None = Field(
        512, gt=0, description="evaluation slides a window of this side in pixels over the image; null: the whole image"
    )
    stride: int = Field(341, gt=0, description="step between windows in pixels")
    test_scales: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="evaluation averages over the image at these scales"
    )
    test_flip: bool = Field(False, description="evaluation averages over the image and its mirror image")

    @model_validator(mode="after")
    def _no_gaps(self) -> UperNetConfig:
        if self.window is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window} pixels")
        return self

    def build(self, specs: Sequence[FeatureSpec]) -> UperNet:
        from piip.heads.upernet.head import UperNet

        return UperNet(specs=specs, **self.model_dump(exclude={"type"}))

    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> LabelMapWriter:
        from piip.results.label_maps import LabelMapWriter

        return LabelMapWriter(class_names, score_threshold=score_threshold)
