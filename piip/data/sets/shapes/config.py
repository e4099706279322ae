"""The settings of the generated set of shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.metrics.config import AccuracyConfig, CocoMetricConfig, MetricConfig, MIoUConfig

if TYPE_CHECKING:
    from piip.data.sets.base import ImageDataset


class ShapesData(DatasetConfig):
    """The generated set of overlapping shapes, written once below `root` as JPEG files with what is on them."""

    type: Literal["shapes"] = "shapes"
    root: Path = Path("data/shapes")
    form: Literal["instances", "label_maps", "crops"] = Field(
        "instances",
        description="instances in COCO format, label maps as PNGs, or crops of single objects in one folder per class",
    )
    split: Literal["train", "val"] = "train"
    images: int = Field(gt=0)
    size: int = Field(256, ge=64, description="side of the square images in pixels")
    seed: int = 0

    def check_files(self, key: str) -> None:
        """Nothing has to be there: what is missing is drawn."""

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        if self.form == "crops":
            return (AccuracyConfig(),)
        return (MIoUConfig() if self.form == "label_maps" else CocoMetricConfig(),)

    def build(self, *, training: bool) -> ImageDataset:
        if self.form == "crops":
            from piip.data.sets.image_folder.config import ImageFolderData
            from piip.data.sets.shapes.crops import write_crops

            return ImageFolderData(root=write_crops(self)).build(training=training)
        if self.form == "label_maps":
            from piip.data.sets.label_maps.config import LabelMapData
            from piip.data.sets.shapes.label_maps import MAP_CLASS_NAMES, write_shape_maps

            images, labels = write_shape_maps(self)
            return LabelMapData(images=images, labels=labels, class_names=MAP_CLASS_NAMES).build(training=training)
        from piip.data.sets.coco.config import CocoData
        from piip.data.sets.shapes.instances import write_shapes

        images, annotations = write_shapes(self)
        return CocoData(images=images, annotations=annotations).build(training=training)
