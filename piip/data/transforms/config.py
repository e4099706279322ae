"""What the settings of every recipe of transforms are."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from piip.config.strict import Component

if TYPE_CHECKING:
    import numpy as np

    from piip.data.transforms.sample import Sample

Pixels = Annotated[int, Field(gt=0)]


class TransformsConfig(Component):
    """What happens to an image, and what is known of it, on its way to the network.

    task: of the heads that the recipe is for.
    """

    default_type: ClassVar = "detection"
    task: ClassVar[str]
    pad_divisor: int = Field(32, gt=0, description="the batch is padded with zeros to a multiple of this")

    @property
    @abstractmethod
    def long_side(self) -> int:
        """Of the images that the network trains on, at most, in pixels."""

    def apply(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Transforms a sample.

        sample: `image` uint8 (3, H, W) and, for training, `target` in its pixels. rng: draws all choices of training;
        without one the sample is prepared as in evaluation. Returns the sample with image and target changed and
        `original_size` (H, W) added.
        """
        return self.transform(sample | {"original_size": tuple(sample["image"].shape[-2:])}, rng)

    @abstractmethod
    def transform(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """What `apply` does, for a recipe to say."""

    def build_mixing(self, *, num_classes: int, batch_size: int, seed: int) -> Any:
        """What mixes the images of whole training batches, as `classification.mixing` does; or None."""
        return None
