"""The settings of instances in COCO format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.metrics.config import CocoMetricConfig, MetricConfig

if TYPE_CHECKING:
    from piip.data.sets.coco.dataset import CocoDataset


class CocoData(DatasetConfig):
    """Images and instance annotations in COCO format."""

    type: Literal["coco"] = "coco"
    images: Path
    annotations: Path
    keep_empty: bool = Field(
        False, description="train on images without annotations too, as the released recipe does not"
    )
    min_side: int = Field(32, gt=0, description="training leaves out images with a side shorter than this, in pixels")
    masks: bool = Field(True, description="false reads boxes only, which is all that DINO learns")

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (CocoMetricConfig(),)

    def build(self, *, training: bool) -> CocoDataset:
        from piip.data.sets.coco.dataset import CocoDataset

        return CocoDataset(
            images=self.images,
            annotations=self.annotations,
            training=training,
            keep_empty=self.keep_empty,
            min_side=self.min_side,
            max_image_pixels=self.max_image_pixels,
            masks=self.masks,
        )
