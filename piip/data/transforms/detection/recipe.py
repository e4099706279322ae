"""The released image recipes of detection: zoom, keep-ratio resize, crop and flip, of images, boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image

from piip.data.transforms.detection.config import DetectionTransforms
from piip.data.transforms.resize import resize_image, resize_masks, resized_size
from piip.data.transforms.sample import Sample

# The entries (n, 4) xyxy of a target.
_BOXES = ("boxes", "crowd_boxes")


def transform_objects(sample: Sample, config: DetectionTransforms, rng: np.random.Generator | None) -> Sample:
    """Zooms, resizes, crops and flips image, boxes, crowd_boxes and masks; see `TransformsConfig.apply`.

    Without rng the first scale is taken, and nothing is cropped or flipped.
    """
    if rng is None:
        return _resize(sample, config.resize[0])
    changed = sample
    if config.zoom is not None and rng.random() < config.zoom.probability:
        changed = _resize(changed, _draw(config.zoom.resize, rng))
        changed = _crop(changed, config.zoom.crop, rng)
    changed = _resize(changed, _draw(config.resize, rng))
    if config.crop is not None:
        changed = _crop(changed, (config.crop, config.crop), rng)
    return _flip(changed) if rng.random() < config.flip else changed


def _draw(scales: Sequence[tuple[int, int]], rng: np.random.Generator) -> tuple[int, int]:
    return scales[int(rng.integers(len(scales)))]


def _resize(sample: Sample, scale: tuple[int, int]) -> Sample:
    """Resizes image and target to the largest size within the (long, short) limits of `scale`."""
    old: tuple[int, int] = tuple(sample["image"].shape[-2:])
    new = resized_size(*old, scale)
    changed = sample | {"image": resize_image(sample["image"], new)}
    if "target" in sample:
        factors = torch.tensor([new[1] / old[1], new[0] / old[0]] * 2, dtype=torch.float32)
        target = changed["target"] = dict(sample["target"])
        for name in _BOXES:
            target[name] = clip_boxes_to_image(target[name] * factors, new)
        if "masks" in target:
            target["masks"] = resize_masks(target["masks"], new)
    return changed


def _crop(sample: Sample, sides: tuple[int, int], rng: np.random.Generator) -> Sample:
    """Cuts out a random part; objects whose box lies outside are dropped, boxes and masks of the others are cut.

    sides: least and greatest side of the part in pixels; each side is drawn by itself, and is at most the image's.
    The part may hold no object at all, as in the released recipe.
    """
    height, width = sample["image"].shape[-2:]
    (top, bottom), (left, right) = (_draw_span(length, sides, rng) for length in (height, width))
    target = dict(sample["target"])
    shift = torch.tensor([left, top] * 2, dtype=torch.float32)
    for name in _BOXES:
        boxes = clip_boxes_to_image(target[name] - shift, (bottom - top, right - left))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        target[name] = boxes[kept]
        if name == "boxes":
            target |= {other: target[other][kept] for other in ("labels", "masks", "has_mask") if other in target}
    if "masks" in target:
        target["masks"] = target["masks"][:, top:bottom, left:right]
    return sample | {"image": sample["image"][:, top:bottom, left:right], "target": target}


def _draw_span(length: int, sides: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    side = int(rng.integers(min(length, sides[0]), min(length, sides[1]) + 1))
    start = int(rng.integers(length - side + 1))
    return start, start + side


def _flip(sample: Sample) -> Sample:
    width = sample["image"].shape[-1]
    target = dict(sample["target"])
    for name in _BOXES:
        left, top, right, bottom = target[name].unbind(1)
        target[name] = torch.stack([width - right, top, width - left, bottom], dim=1)
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return sample | {"image": sample["image"].flip(-1), "target": target}
