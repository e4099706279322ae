"""What happens to an image on its way to the network: one recipe a task."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, field_validator, model_validator

from piip.config.base import Strict, type_or

_Pixels = Annotated[int, Field(gt=0)]


class ZoomConfig(Strict):
    """A part of the image takes its place: DETR's second augmentation policy (Carion et al., 2020, section 4)."""

    in_pixels: ClassVar = ("resize", "crop")

    probability: float = Field(0.5, ge=0, le=1)
    resize: tuple[tuple[_Pixels, _Pixels], ...] = Field(
        min_length=1,
        description="(long, short) limits in pixels of the keep-ratio resize before the crop; one is picked",
        examples=[[[1333, 600]]],
    )
    crop: tuple[int, int] = Field(
        description="shortest and longest side in pixels of the part that is kept", examples=[[384, 600]]
    )

    @model_validator(mode="after")
    def _rising(self) -> ZoomConfig:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop: give the shortest side, then the longest, got {list(self.crop)}")
        return self


class DetectionTransforms(Strict):
    """Of images with boxes and masks; in training in the order zoom, resize, crop, flip."""

    in_pixels: ClassVar = ("resize", "crop")
    type: Literal["detection"] = "detection"
    zoom: ZoomConfig | None = Field(None, description="in training, before the resize")
    resize: tuple[tuple[_Pixels, _Pixels], ...] = Field(
        min_length=1,
        description="(long, short) limits in pixels of the keep-ratio resize; training picks one at random",
        examples=[[[1333, 800]]],
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    crop: int | None = Field(
        None, gt=0, description="training keeps a random part of at most this many pixels in height and in width"
    )
    pad_divisor: int = Field(32, gt=0, description="the batch is padded with zeros to a multiple of this")

    @property
    def long_side(self) -> int:
        """Of the images that the network trains on, at most, in pixels."""
        return self.crop or max(long for long, _ in self.resize)


class SegmentationTransforms(Strict):
    """Of images with a map of labels; in training in the order resize, crop, flip, photometric distortion."""

    in_pixels: ClassVar = ("resize", "crop")
    type: Literal["segmentation"] = "segmentation"
    resize: tuple[_Pixels | None, _Pixels] = Field(
        (2048, 512),
        description="(long, short) limits in pixels of the keep-ratio resize; with null as the first, the shorter side "
        "becomes the second, as in the released evaluation",
    )
    ratio_range: tuple[float, float] = Field((1.0, 1.0), description="training scales the limits by a factor from here")
    crop: int | None = Field(None, gt=0, description="training keeps a random square part of at most this side")
    crop_max_share: float = Field(
        1.0, gt=0, le=1, description="a crop with this share of one class or more is drawn anew, ten times at most"
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    photometric: bool = Field(False, description="change brightness, contrast, saturation and hue (SSD's distortion)")
    pad_divisor: int = Field(32, gt=0, description="the batch is padded to a multiple of this, with zeros and no label")

    @model_validator(mode="after")
    def _rising(self) -> SegmentationTransforms:
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(f"ratio_range: give the smallest factor, then the largest, got {list(self.ratio_range)}")
        return self

    @property
    def long_side(self) -> int:
        """Of the images that the network trains on, at most, in pixels."""
        return self.crop or self.resize[0] or self.resize[1]


class ClassificationTransforms(Strict):
    """Of images with one label; square images of `size` come out. Training crops, flips and augments, then mixes."""

    in_pixels: ClassVar = ("size",)
    type: Literal["classification"] = "classification"
    size: int = Field(224, gt=0, description="side in pixels of what comes out")
    crop_ratio: float = Field(
        1.0, gt=0, le=1, description="evaluation resizes to size / crop_ratio and cuts the centre"
    )
    crop: Literal["random", "simple", "centre"] = Field(
        "random",
        description="training resizes a part of random area and shape; or, as DeiT III's simple random crop, the whole "
        "image, moved by up to four pixels; or takes what evaluation takes",
    )
    area: tuple[float, float] = Field((0.08, 1.0), description="least and greatest share of a random crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    augment: Literal["none", "rand", "three"] = Field(
        "none",
        description="rand: RandAugment; three: DeiT III's 3-Augment, one of grayscale, solarisation and Gaussian blur",
    )
    rand_augment: str = Field("rand-m9-mstd0.5-inc1", description="timm's name of the RandAugment policy")
    color_jitter: float = Field(
        0.0,
        ge=0,
        description="change of brightness, contrast and saturation; RandAugment takes its place, as in timm, where it "
        "is on",
    )
    erase: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is replaced by noise")
    mixup: float = Field(0.0, ge=0, description="alpha of Mixup; 0 for none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 for none; with Mixup, each takes half the batches")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread over all classes")
    pad_divisor: Literal[1] = 1

    @model_validator(mode="after")
    def _rising(self) -> ClassificationTransforms:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area: give the least share, then the greatest, both up to 1, got {list(self.area)}")
        return self

    @property
    def long_side(self) -> int:
        """Of the images that the network trains on, in pixels."""
        return self.size

    @field_validator("rand_augment")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not re.fullmatch(r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t(weights|3aw?)))*", policy):
            raise ValueError(
                f"'{policy}' is no RandAugment policy; it is 'rand' and any of -m (magnitude), -n (operations), -p "
                "(probability), -mstd (deviation of the magnitude), -mmax and -inc1, as in rand-m9-mstd0.5-inc1"
            )
        return policy


TransformConfig = Annotated[
    Annotated[DetectionTransforms, Tag("detection")]
    | Annotated[SegmentationTransforms, Tag("segmentation")]
    | Annotated[ClassificationTransforms, Tag("classification")],
    type_or("detection"),
]
