"""The settings of transforms for detection."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from piip.config.strict import Strict
from piip.data.transforms.config import Pixels, TransformsConfig

if TYPE_CHECKING:
    import numpy as np

    from piip.data.transforms.sample import Sample


class ZoomConfig(Strict):
    """Replaces the image by a part of it: DETR's second augmentation policy (Carion et al., 2020, section 4)."""

    in_pixels: ClassVar = ("resize", "crop")

    probability: float = Field(0.5, ge=0, le=1)
    resize: tuple[tuple[Pixels, Pixels], ...] = Field(
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


class DetectionTransforms(TransformsConfig):
    """Transforms for images with boxes and masks. Training applies zoom, resize, crop and flip, in this order."""

    in_pixels: ClassVar = ("resize", "crop")
    task: ClassVar = "detection"
    type: Literal["detection"] = "detection"
    zoom: ZoomConfig | None = Field(None, description="in training, before the resize")
    resize: tuple[tuple[Pixels, Pixels], ...] = Field(
        min_length=1,
        description="(long, short) limits in pixels of the keep-ratio resize; training picks one at random",
        examples=[[[1333, 800]]],
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    crop: int | None = Field(
        None, gt=0, description="training keeps a random part of at most this many pixels in height and in width"
    )

    @property
    def long_side(self) -> int:
        return self.crop or max(long for long, _ in self.resize)

    def transform(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        from piip.data.transforms.detection.recipe import transform_objects

        return transform_objects(sample, self, rng)
