"""The two-policy augmentation of the DETR family, against the same steps taken with OpenCV and numpy slices."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from piip.data.transforms.detection.config import DetectionTransforms
from piip.data.transforms.resize import resized_size

SCALES = [(90, 40), (90, 48), (90, 56)]
ZOOM_SCALES, SIDES = [(90, 30), (90, 45)], (20, 35)


def cut(image: np.ndarray, sides: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    parts = []
    for length in image.shape[:2]:
        side = int(draw.integers(min(length, sides[0]), min(length, sides[1]) + 1))
        start = int(draw.integers(length - side + 1))
        parts.append(slice(start, start + side))
    return np.ascontiguousarray(image[parts[0], parts[1]])


def resized(image: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
    height, width = resized_size(*image.shape[:2], scale)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def test_zooming_is_resize_crop_and_resize_and_then_comes_the_crop_to_the_training_size() -> None:
    zoom = {"resize": ZOOM_SCALES, "crop": SIDES, "probability": 1.0}
    config = DetectionTransforms.model_validate({"resize": SCALES, "zoom": zoom, "crop": 50, "flip": 0.5})
    y, x = np.mgrid[:60, :80]
    picture = np.stack([x * 3, y * 4, (x + y) % 251], axis=-1).astype(np.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "crowd_boxes": torch.zeros(0, 4)}
    for seed in range(20):
        sample = {"image": torch.from_numpy(picture).permute(2, 0, 1), "target": nothing}
        found = config.apply(sample, np.random.default_rng(seed))
        draw = np.random.default_rng(seed)
        draw.random()
        expected = cut(resized(picture, ZOOM_SCALES[draw.integers(2)]), SIDES, draw)
        expected = cut(resized(expected, SCALES[draw.integers(3)]), (50, 50), draw)
        expected = expected[:, ::-1] if draw.random() < 0.5 else expected
        np.testing.assert_array_equal(found["image"].permute(1, 2, 0).numpy(), expected)
        assert found["original_size"] == (60, 80)


def test_a_range_of_sides_that_falls_is_refused() -> None:
    zoom = {"resize": ZOOM_SCALES, "crop": [600, 384]}
    with pytest.raises(ValueError, match=r"give the shortest side, then the longest, got \[600, 384\]"):
        DetectionTransforms.model_validate({"resize": SCALES, "zoom": zoom})
