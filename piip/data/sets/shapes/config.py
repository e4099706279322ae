"""The settings of the generated set of shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig

if TYPE_CHECKING:
    from piip.data.sets.base import ImageDataset


class ShapesData(DatasetConfig):
    """The generated set of overlapping shapes, written once below `root` as JPEG files with what is on them.

    form: instances in COCO format, label maps as PNGs, or crops of single objects in a folder a class.
    """

    type: Literal["shapes"] = "shapes"
    root: Path = Path("data/shapes")
    form: Literal["instances", "label_maps", "crops"] = "instances"
    split: Literal["train", "val"] = "train"
    images: int = Field(gt=0)
    size: int = Field(256, ge=64, description="side of the square images in pixels")
    seed: int = 0

    def check_files(self, key: str) -> None:
        """Nothing has to be there: what is missing is drawn."""

    def build(self, *, training: bool) -> ImageDataset:
        if self.form == "crops":
            from piip.data.sets.image_folder.dataset import ImageFolderDataset
            from piip.data.sets.shapes.crops import write_crops

            return ImageFolderDataset(root=write_crops(self))
        if self.form == "label_maps":
            from piip.data.sets.label_maps.dataset import LabelMapDataset
            from piip.data.sets.shapes.label_maps import MAP_CLASS_NAMES, write_shape_maps

            images, labels = write_shape_maps(self)
            return LabelMapDataset(images=images, labels=labels, class_names=MAP_CLASS_NAMES)
        from piip.data.sets.coco.dataset import CocoDataset
        from piip.data.sets.shapes.instances import write_shapes

        images, annotations = write_shapes(self)
        return CocoDataset(images=images, annotations=annotations, training=training)
