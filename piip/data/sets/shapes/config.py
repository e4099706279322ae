"""The settings of the generated set of shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.coco.config import CocoData
from piip.data.sets.config import DatasetConfig
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.sets.label_maps.config import LabelMapData
from piip.metrics.config import MetricConfig

if TYPE_CHECKING:
    from piip.data.sets.base import ImageDataset

CLASS_NAMES = ["circle", "rectangle", "triangle", "star", "cross"]

# What folders of a form are called, and the version of its drawing: raise it when that changes.
_FORMS = {"instances": ("", 2), "label_maps": ("maps-", 1), "crops": ("crops-", 1)}


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

    @property
    def folder(self) -> Path:
        """Where the set lies once it is written."""
        prefix, version = _FORMS[self.form]
        return self.root / f"{prefix}{self.split}-{self.images}x{self.size}-seed{self.seed}-v{version}"

    def as_read(self) -> DatasetConfig:
        """The written set, in the format of its files."""
        images = self.folder / "images"
        if self.form == "crops":
            return ImageFolderData(root=self.folder)
        if self.form == "label_maps":
            # The background is a class, as `wall` or `sky` are in photographs.
            names = ("background", *CLASS_NAMES)
            return LabelMapData(images=images, labels=self.folder / "labels", class_names=names)
        return CocoData(images=images, annotations=self.folder / "annotations.json")

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return self.as_read().default_metrics()

    def build(self, *, training: bool) -> ImageDataset:
        from piip.data.sets.shapes.writers import write_once

        write_once(self)
        return self.as_read().build(training=training)
