"""The settings of Mask R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from piip.features import FeatureSpec
from piip.heads.config import DetectionHeadConfig

if TYPE_CHECKING:
    from piip.heads.mask_rcnn.head import MaskRCNN


class MaskRCNNConfig(DetectionHeadConfig):
    """Mask R-CNN (He et al., 2017) with the settings of the released configs as defaults."""

    type: Literal["mask_rcnn"] = "mask_rcnn"
    num_classes: int = Field(80, gt=0)
    anchor_scale: float = Field(8.0, gt=0, description="anchor side at stride s is anchor_scale * s pixels")
    anchor_ratios: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.5, 1.0, 2.0), min_length=1)
    rpn_batch: int = Field(256, gt=0, description="anchors sampled per image for the RPN losses")
    rpn_pre_nms_train: int = Field(2000, gt=0)
    rpn_pre_nms_test: int = Field(1000, gt=0)
    rpn_proposals: int = Field(1000, gt=0)
    rpn_nms: float = Field(0.7, gt=0, le=1)
    roi_batch: int = Field(512, gt=0, description="proposals sampled per image for the box losses")
    fc_channels: int = Field(1024, gt=0)
    masks: bool = Field(True, description="false: no mask branch; boxes alone, as in Faster R-CNN")
    mask_channels: int = Field(256, gt=0)
    mask_convs: int = Field(4, ge=0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms: float = Field(0.5, gt=0, le=1)
    max_detections: int = Field(100, gt=0)

    def build(self, specs: Sequence[FeatureSpec]) -> MaskRCNN:
        from piip.heads.mask_rcnn.head import MaskRCNN

        return MaskRCNN(self, specs)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"masks"} if self.masks else super().needs

    @property
    def counted_at(self) -> str:
        return f"{self.rpn_proposals} proposals and {self.max_detections} detections; RoIAlign not counted"
