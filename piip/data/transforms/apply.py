"""Which recipe a config asks for."""

from __future__ import annotations

import numpy as np

from piip.config import ClassificationTransforms, SegmentationTransforms, TransformConfig
from piip.data.transforms.classification import transform_labelled
from piip.data.transforms.detection import transform_objects
from piip.data.transforms.sample import Sample
from piip.data.transforms.segmentation import transform_label_map


def transform(sample: Sample, config: TransformConfig, rng: np.random.Generator | None) -> Sample:
    """Applies the recipe of a config to a sample.

    sample: `image` uint8 (3, H, W) and, for training, `target` in its pixels.
    rng: draws all choices of training; without one the sample is prepared as in evaluation.
    Returns the sample with image and target changed and `original_size` (H, W) added.
    """
    sample = sample | {"original_size": tuple(sample["image"].shape[-2:])}
    if isinstance(config, SegmentationTransforms):
        return transform_label_map(sample, config, rng)
    if isinstance(config, ClassificationTransforms):
        return transform_labelled(sample, config, rng)
    return transform_objects(sample, config, rng)
