"""The released recipe of segmentation: resize, crop, flip and photometric distortion, of images and label maps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from piip.conventions import NO_LABEL
from piip.data.transforms.resize import resize_image, resize_masks, resized_size
from piip.data.transforms.sample import Sample
from piip.data.transforms.segmentation.config import SegmentationTransforms
from piip.data.transforms.segmentation.photometric import distort

# After so many parts with too much of one class the next one is taken as it is.
_CROP_TRIES = 10


def transform_label_map(sample: Sample, config: SegmentationTransforms, rng: np.random.Generator | None) -> Sample:
    """Resizes, crops, flips and distorts an image and its label_map (H, W) uint8; see `TransformsConfig.apply`.

    Without rng the image is only resized.
    """
    image: Tensor = sample["image"]
    if rng is None:
        return sample | {"image": resize_image(image, _size(image, *config.resize))}
    labels: Tensor = sample["target"]["label_map"]
    factor = rng.uniform(*config.ratio_range)
    long, short = config.resize
    size = _size(image, None if long is None else int(long * factor), int(short * factor))
    image, labels = resize_image(image, size), resize_masks(labels[None], size)[0]
    if config.crop is not None:
        rows, columns = _draw_part(labels, config.crop, config.crop_max_share, rng)
        image, labels = image[:, rows, columns], labels[rows, columns]
    if rng.random() < config.flip:
        image, labels = image.flip(-1), labels.flip(-1)
    if config.photometric:
        image = distort(image, rng)
    return sample | {"image": image, "target": sample["target"] | {"label_map": labels.contiguous()}}


def _size(image: Tensor, long: int | None, short: int) -> tuple[int, int]:
    """(h, w) within the limits; without a long one the shorter side becomes `short`, as in the released evaluation."""
    height, width = image.shape[-2:]
    limit = short * max(height, width) / min(height, width) if long is None else long
    return resized_size(height, width, (limit, short))


def _draw_part(labels: Tensor, side: int, max_share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random part of a label map (H, W), at most `side` pixels in each direction.

    A part in which one class has max_share or more of the labelled pixels is drawn anew, ten times at most.
    """

    def draw() -> tuple[slice, slice]:
        tops = [int(rng.integers(max(length - side, 0) + 1)) for length in labels.shape]
        return slice(tops[0], tops[0] + side), slice(tops[1], tops[1] + side)

    part = draw()
    for _ in range(_CROP_TRIES if max_share < 1 else 0):
        counts = torch.bincount(labels[part].flatten(), minlength=NO_LABEL + 1)[:NO_LABEL]
        if counts.max() < max_share * counts.sum():
            break
        part = draw()
    return part
