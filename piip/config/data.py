"""Where the images come from, and what happens to them on their way to the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from piip.config.base import Strict


class CocoData(Strict):
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


class ShapesData(Strict):
    """The generated set of overlapping shapes, written once below `root` as COCO-format JPEG and JSON files."""

    type: Literal["shapes"] = "shapes"
    root: Path = Path("data/shapes")
    split: Literal["train", "val"] = "train"
    images: int = Field(gt=0)
    size: int = Field(256, ge=64, description="side of the square images in pixels")
    seed: int = 0


DatasetConfig = Annotated[CocoData | ShapesData, Field(discriminator="type")]


class ZoomConfig(Strict):
    """A part of the image takes its place: DETR's second augmentation policy (Carion et al., 2020, section 4)."""

    probability: float = Field(0.5, ge=0, le=1)
    resize: tuple[tuple[int, int], ...] = Field(
        min_length=1,
        description="(long, short) limits in pixels of the keep-ratio resize before the crop; one is picked",
    )
    crop: tuple[int, int] = Field(description="shortest and longest side in pixels of the part that is kept")

    @model_validator(mode="after")
    def _rising(self) -> ZoomConfig:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop: give the shortest side, then the longest, got {list(self.crop)}")
        return self


class TransformConfig(Strict):
    """What happens to an image on its way to the network; in training in the order zoom, resize, crop, flip."""

    zoom: ZoomConfig | None = Field(None, description="in training, before the resize")
    resize: tuple[tuple[int, int], ...] = Field(
        min_length=1,
        description="(long, short) limits in pixels of the keep-ratio resize; training picks one at random",
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    crop: int | None = Field(
        None, gt=0, description="training keeps a random part of at most this many pixels in height and in width"
    )
    pad_divisor: int = Field(32, gt=0, description="the batch is padded with zeros to a multiple of this")


class DataConfig(Strict):
    train: DatasetConfig
    val: DatasetConfig
    train_transforms: TransformConfig
    val_transforms: TransformConfig
    batch_size: int = Field(
        16, gt=0, description="images per optimizer step, over all processes and accumulation steps"
    )
    eval_batch_size: int = Field(1, gt=0, description="images per process and evaluation step")
    workers: int = Field(2, ge=0, description="loader processes per training process")
