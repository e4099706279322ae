"""The settings that every recipe of transforms has."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from piip.config.strict import Component

if TYPE_CHECKING:
    import numpy as np

    from piip.data.transforms.sample import BatchMixing, Sample

Pixels = Annotated[int, Field(gt=0)]


class TransformsConfig(Component):
    """What is done to images and targets on their way to the network. task: of the heads that the recipe is for."""

    default_type: ClassVar = "detection"
    task: ClassVar[str]
    pad_divisor: int = Field(32, gt=0, description="the batch is padded with zeros to a multiple of this")

    @property
    @abstractmethod
    def long_side(self) -> int:
        """The longest side that images have in training, in pixels."""

    def apply(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Transforms a sample.

        sample: `image` uint8 (3, H, W) and, for training, `target` in its pixels. rng: draws all choices of training;
        without one the sample is prepared as in evaluation. Returns the sample with image and target changed and
        `original_size` (H, W) added.
        """
        return self.transform(sample | {"original_size": tuple(sample["image"].shape[-2:])}, rng)

    @abstractmethod
    def transform(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """The part of `apply` that a recipe defines."""

    def build_mixing(self, *, num_classes: int, batch_size: int, seed: int) -> BatchMixing | None:
        """What changes whole training batches, such as Mixup; None where nothing does."""
        return None
