"""The settings of transforms for classification."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from piip.data.transforms.config import TransformsConfig

if TYPE_CHECKING:
    import numpy as np

    from piip.data.transforms.classification.mixing import Mixing
    from piip.data.transforms.sample import Sample


class ClassificationTransforms(TransformsConfig):
    """Transforms of images with one label into squares of `size`. Training crops, flips and augments, then mixes."""

    in_pixels: ClassVar = ("size",)
    task: ClassVar = "classification"
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

    def transform(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        from piip.data.transforms.classification.recipe import transform_labelled

        return transform_labelled(sample, self, rng)

    def build_mixing(self, *, num_classes: int, batch_size: int, seed: int) -> Mixing:
        from piip.data.transforms.classification.mixing import Mixing

        return Mixing(self, num_classes=num_classes, batch_size=batch_size, seed=seed)
