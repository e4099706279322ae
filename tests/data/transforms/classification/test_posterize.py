"""RandAugment at its strongest, where posterising keeps no bit of a colour."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps

from piip.data.transforms.classification.config import ClassificationTransforms
from piip.data.transforms.classification.recipe import _posterize
from piip.data.transforms.sample import generator


def test_posterising_to_no_bits_gives_black_and_to_some_what_pillow_gives() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert np.asarray(_posterize(image, 0)).max() == 0
    assert np.array_equal(_posterize(image, 3), ImageOps.posterize(image, 3))
    assert _posterize(image, 8) is image


def test_every_operation_runs_at_the_greatest_magnitude() -> None:
    """Eight of fifteen operations a draw, so that none is missing from twenty draws."""
    config = ClassificationTransforms(size=16, augment="rand", rand_augment="rand-m10-n8-p1.0-inc1")
    for number in range(20):
        sample = {"image": torch.full((3, 20, 20), 200, dtype=torch.uint8), "image_id": "a", "target": {}}
        assert config.apply(sample, generator(0, 1, 0, number))["image"].shape == (3, 16, 16)
