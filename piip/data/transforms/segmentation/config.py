"""The settings of transforms for segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from piip.data.transforms.config import Pixels, TransformsConfig

if TYPE_CHECKING:
    import numpy as np

    from piip.data.transforms.sample import Sample


class SegmentationTransforms(TransformsConfig):
    """Transforms for images with label maps. Training applies resize, crop, flip and photometric distortion."""

    in_pixels: ClassVar = ("resize", "crop")
    task: ClassVar = "segmentation"
    type: Literal["segmentation"] = "segmentation"
    resize: tuple[Pixels | None, Pixels] = Field(
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
        return self.crop or self.resize[0] or self.resize[1]

    def transform(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        from piip.data.transforms.segmentation.recipe import transform_label_map

        return transform_label_map(sample, self, rng)
