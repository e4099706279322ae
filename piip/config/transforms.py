"""What happens to an image on its way to the network: one recipe a task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from piip.config.base import Strict


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


class DetectionTransforms(Strict):
    """Of images with boxes and masks; in training in the order zoom, resize, crop, flip."""

    type: Literal["detection"] = "detection"
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


class SegmentationTransforms(Strict):
    """Of images with a map of labels; in training in the order resize, crop, flip, photometric distortion."""

    type: Literal["segmentation"] = "segmentation"
    resize: tuple[int, int] = Field((2048, 512), description="(long, short) limits in pixels of the keep-ratio resize")
    ratio_range: tuple[float, float] = Field((1.0, 1.0), description="training scales the limits by a factor from here")
    crop: int | None = Field(None, gt=0, description="training keeps a random square part of at most this side")
    crop_max_share: float = Field(
        1.0, gt=0, le=1, description="a crop with more of one class than this share is drawn anew, ten times at most"
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    photometric: bool = Field(False, description="change brightness, contrast, saturation and hue (SSD's distortion)")
    pad_divisor: int = Field(32, gt=0, description="the batch is padded to a multiple of this, with zeros and no label")


class ClassificationTransforms(Strict):
    """Of images with one label; square images of `size` come out."""

    type: Literal["classification"] = "classification"
    size: int = Field(224, gt=0)
    crop_ratio: float = Field(
        1.0, gt=0, le=1, description="evaluation resizes to size / crop_ratio and cuts the centre"
    )
    augment: Literal["none", "rand", "three"] = Field(
        "none",
        description="training: rand is timm's RandAugment, three is DeiT III's 3-Augment; none crops and flips",
    )
    rand_augment: str = Field("rand-m9-mstd0.5-inc1", description="timm's name of the RandAugment policy")
    color_jitter: float = Field(0.0, ge=0)
    simple_crop: bool = Field(False, description="crop from an image resized to size instead of a random part of it")
    erase: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0, description="alpha of Mixup; 0 for none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 for none")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the mixed labels")
    pad_divisor: Literal[1] = 1


def _type(transforms: Any) -> str:
    found = transforms.get("type", "detection") if isinstance(transforms, dict) else transforms.type
    return str(found)


TransformConfig = Annotated[
    Annotated[DetectionTransforms, Tag("detection")]
    | Annotated[SegmentationTransforms, Tag("segmentation")]
    | Annotated[ClassificationTransforms, Tag("classification")],
    Discriminator(_type),
]
