"""Where the images come from, and what happens to them on their way to the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from piip.config.base import Strict
from piip.config.transforms import TransformConfig
from piip.errors import DataError


class DatasetFiles(Strict):
    """Base of every data set's config."""

    def check_files(self, key: str) -> None:
        """Raises DataError for a file or folder that is not there. key: of this data set, for the message."""
        for name in type(self).model_fields:
            path = getattr(self, name)
            if isinstance(path, Path) and not os.path.exists(path):
                beside = "" if path.is_absolute() else f" (relative to the current directory {Path.cwd()})"
                raise DataError(f"{key}.{name}: there is no {path}{beside}")


class CocoData(DatasetFiles):
    """Images and instance annotations in COCO format."""

    type: Literal["coco"] = "coco"
    images: Path
    annotations: Path
    max_image_pixels: int = Field(100_000_000, gt=0, description="larger images are refused from their header")
    keep_empty: bool = Field(
        False, description="train on images without annotations too, as the released recipe does not"
    )
    min_side: int = Field(32, gt=0, description="training leaves out images with a side shorter than this, in pixels")
    masks: bool = Field(True, description="false reads boxes only, which is all that DINO learns")


class LabelMapData(DatasetFiles):
    """Images and, in PNG files of the same stem, the label of every pixel."""

    type: Literal["label_maps"] = "label_maps"
    images: Path = Field(description="folder of the images, with subfolders or without")
    labels: Path = Field(description="folder of the label PNGs, laid out like that of the images")
    class_names: Path | Literal["ade20k"] = Field(
        description="text file with a name a line, in label order; ade20k: the 150 names of ADE20K"
    )
    reduce_zero_label: bool = Field(
        False, description="0 in the files is no label and 1 the first one, as in ADE20K; 255 is never a label"
    )
    max_image_pixels: int = Field(100_000_000, gt=0, description="larger images are refused from their header")


class ImageFolderData(DatasetFiles):
    """Images in one folder per class, named like it: the layout of ImageNet."""

    type: Literal["image_folder"] = "image_folder"
    root: Path
    class_names: Path | Literal["imagenet"] | None = Field(
        None,
        description="text file with 'folder name' a line, which also gives the order; imagenet: the 1000 synsets and "
        "their names; else folders in their order",
    )
    max_image_pixels: int = Field(100_000_000, gt=0, description="larger images are refused from their header")


class ShapesData(DatasetFiles):
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


DatasetConfig = Annotated[CocoData | LabelMapData | ImageFolderData | ShapesData, Field(discriminator="type")]


class DataConfig(Strict):
    train: DatasetConfig
    val: DatasetConfig
    train_transforms: TransformConfig
    val_transforms: TransformConfig
    batch_size: int = Field(
        16, gt=0, description="images per optimizer step, over all processes and accumulation steps"
    )
    eval_batch_size: int = Field(1, gt=0, description="images per process and evaluation step")
    workers: int = Field(2, ge=0, le=256, description="loader processes per training process")
