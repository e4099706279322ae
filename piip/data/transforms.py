"""The released image recipes: zoom, keep-ratio resize, crop, flip, normalise, pad. Pixels equal OpenCV's, bit by bit.

The official models were trained and measured on images resized by OpenCV's 8-bit bilinear interpolation, which works in
fixed point (11 bits per weight) and truncates twice, so that it lies 0.13 grey levels below exact interpolation on
average. torch's resizes round differently; `resize_image` repeats OpenCV's arithmetic with torch operators instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from piip.config import TransformConfig
from piip.errors import DataError

Sample = dict[str, Any]


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key): the same in any process, in any order, after any resume."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))


def resized_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the largest image of the same shape within the (long, short) limits of `scale`, in pixels."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize without antialiasing of a uint8 image (C, H, W) to (C, h, w), equal to OpenCV's INTER_LINEAR."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    top, bottom, row_weights = _taps(height, size[0], image.device, clamp_weights=False)
    left, right, column_weights = _taps(width, size[1], image.device, clamp_weights=True)
    pixels = image.int()
    rows = pixels.index_select(2, left).mul_(column_weights[0])
    rows.add_(pixels.index_select(2, right).mul_(column_weights[1])).bitwise_right_shift_(4)
    upper = rows.index_select(1, top).mul_(row_weights[0, :, None]).bitwise_right_shift_(16)
    lower = rows.index_select(1, bottom).mul_(row_weights[1, :, None]).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _taps(length: int, resized: int, device: torch.device, *, clamp_weights: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis, for every output pixel: its two source indices and their weights (2, resized) in units of 1/2048.

    Beyond the border both indices are the border pixel. Horizontally OpenCV then gives one of them the whole weight;
    vertically it leaves the weights as they are, which matters because each product is truncated.
    """
    step = 1.0 / (resized / length)
    position = ((torch.arange(resized, dtype=torch.float64) + 0.5) * step - 0.5).float()
    first = position.floor()
    fraction = position - first
    if clamp_weights:
        fraction = fraction.masked_fill((first < 0) | (first >= length - 1), 0.0)
    weights = torch.stack([1.0 - fraction, fraction]).mul_(2048).round_().int()
    first = first.long()
    taps = first.clamp(0, length - 1), (first + 1).clamp(0, length - 1), weights
    return tuple(tap.to(device) for tap in taps)  # type: ignore[return-value]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of masks (n, H, W) to (n, h, w), equal to OpenCV's INTER_NEAREST."""
    for dim, resized in ((1, size[0]), (2, size[1])):
        length = masks.shape[dim]
        if length != resized:
            step = 1.0 / (resized / length)
            index = (torch.arange(resized, dtype=torch.float64) * step).long().clamp_(max=length - 1)
            masks = masks.index_select(dim, index.to(masks.device))
    return masks


def transform(sample: Sample, config: TransformConfig, rng: np.random.Generator | None) -> Sample:
    """Zooms, resizes, crops and flips a sample as the config says.

    sample: `image` uint8 (3, H, W) and, for training, `target` with boxes, labels, masks and crowd_boxes in its pixels.
    rng: draws all choices; without one the first scale is taken, and nothing is cropped or flipped.
    Returns the sample with image and target changed and `original_size` (H, W) added.
    """
    image: Tensor = sample["image"]
    changed = sample | {"original_size": (image.shape[-2], image.shape[-1])}
    if rng is None:
        return _resize(changed, config.resize[0])
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
        target = {name: _clip(boxes * factors, new) for name, boxes in _boxes(sample["target"])}
        if "masks" in sample["target"]:
            target["masks"] = resize_masks(sample["target"]["masks"], new)
        changed["target"] = sample["target"] | target
    return changed


def _crop(sample: Sample, sides: tuple[int, int], rng: np.random.Generator) -> Sample:
    """Cuts out a random part; objects whose box lies outside are dropped, boxes and masks of the others are cut.

    sides: least and greatest side of the part in pixels; each side is drawn by itself, and is at most the image's.
    The part may hold no object at all, as in the released recipe.
    """
    height, width = sample["image"].shape[-2:]
    (top, bottom), (left, right) = (_draw_span(length, sides, rng) for length in (height, width))
    changed = sample | {"image": sample["image"][:, top:bottom, left:right]}
    if "target" in sample:
        target = dict(sample["target"])
        shift = torch.tensor([left, top] * 2, dtype=torch.float32)
        for name, boxes in _boxes(target):
            boxes = _clip(boxes - shift, (bottom - top, right - left))
            kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            target[name] = boxes[kept]
            if name == "boxes":
                target |= {other: target[other][kept] for other in ("labels", "masks") if other in target}
        if "masks" in target:
            target["masks"] = target["masks"][:, top:bottom, left:right]
        changed["target"] = target
    return changed


def _draw_span(length: int, sides: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    side = int(rng.integers(min(length, sides[0]), min(length, sides[1]) + 1))
    start = int(rng.integers(length - side + 1))
    return start, start + side


def _flip(sample: Sample) -> Sample:
    width = sample["image"].shape[-1]
    changed = sample | {"image": sample["image"].flip(-1)}
    if "target" in sample:
        target = {
            name: torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            for name, boxes in _boxes(sample["target"])
        }
        if "masks" in sample["target"]:
            target["masks"] = sample["target"]["masks"].flip(-1)
        changed["target"] = sample["target"] | target
    return changed


def _boxes(target: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The entries (n, 4) xyxy of a target."""
    return [(name, target[name]) for name in ("boxes", "crowd_boxes")]


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    return boxes.clamp(min=torch.zeros(4), max=limits)


def normalise_and_pad(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], divisor: int) -> Tensor:
    """One float32 batch (B, 3, H, W) of uint8 images (3, h, w): normalised, then zero-padded at the bottom and right.

    H and W are the largest h and w rounded up to a multiple of `divisor`. mean and std are RGB in 0..255.
    """
    device = images[0].device
    height, width = (-(-max(image.shape[dim] for image in images) // divisor) * divisor for dim in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, device=device)
    offset, gain = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
    for image, place in zip(images, batch, strict=True):
        torch.sub(image, offset, out=place[:, : image.shape[1], : image.shape[2]]).div_(gain)
    return batch


def prepare(
    images: Sequence[Tensor], transforms: TransformConfig, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images as the network takes them in evaluation: resized to the first scale, normalised, padded.

    images: uint8 RGB (3, H, W), of any sizes. mean, std: RGB in 0..255.
    Returns the batch (B, 3, H', W') and every image's valid (h, w) in it. Raises DataError for other dtypes and shapes.
    """
    if not images:
        raise DataError("no images were given")
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
            raise DataError(f"images must be non-empty uint8 RGB tensors of shape (3, H, W), got {kind}")
    resized = [transform({"image": image}, transforms, None)["image"] for image in images]
    sizes = [(image.shape[1], image.shape[2]) for image in resized]
    return normalise_and_pad(resized, mean, std, transforms.pad_divisor), sizes
