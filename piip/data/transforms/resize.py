"""Resizing as OpenCV does it, bit by bit.

The official models were trained and measured on images resized by OpenCV's 8-bit bilinear interpolation, which works in
fixed point (11 bits per weight) and truncates twice, so that it lies 0.13 grey levels below exact interpolation on
average. torch's resizes round differently; `resize_image` repeats OpenCV's arithmetic with numpy instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IndexArray = NDArray[np.int64]

_LINES = 48


def resized_size(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int]:
    """(h, w) of the largest image of the same shape within the (long, short) limits of `scale`, in pixels."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize without antialiasing of a uint8 image (C, H, W) to (C, h, w), equal to OpenCV's INTER_LINEAR.

    It runs on the CPU, wherever the image lies.
    """
    channels, height, width = image.shape
    if (height, width) == tuple(size):
        return image
    top, bottom, row_weights = _taps(height, size[0], clamp_weights=False)
    left, right, column_weights = _taps(width, size[1], clamp_weights=True)
    # Only the rows that are needed, a few at a time, so that they stay in the cache.
    lines = image.permute(1, 2, 0).contiguous().cpu().numpy().reshape(height, width * channels)
    left, right = ((pixels[:, None] * channels + np.arange(channels)).ravel() for pixels in (left, right))
    column_weights = column_weights.repeat(channels, axis=1)
    needed, place = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    top, bottom = np.split(place, 2)

    stretched = np.empty((len(needed), size[1] * channels), dtype=np.int16)
    for part in _parts(len(needed)):
        pixels = lines[needed[part]]
        total = _times(pixels.take(left, axis=1), column_weights[0])
        total += _times(pixels.take(right, axis=1), column_weights[1])
        total >>= 4
        stretched[part] = total
    resized = np.empty((size[0], size[1] * channels), dtype=np.uint8)
    for part in _parts(size[0]):
        total, lower = (
            _times(stretched[rows[part]], weights[part, None])
            for rows, weights in zip((top, bottom), row_weights, strict=True)
        )
        total >>= 16
        lower >>= 16
        total += lower
        total += 2
        total >>= 2
        resized[part] = total
    return torch.from_numpy(resized.reshape(*size, channels)).permute(2, 0, 1).to(image.device)


def _times(pixels: NDArray[Any], weights: NDArray[np.int32]) -> NDArray[np.int32]:
    product = pixels.astype(np.int32)
    product *= weights
    return product


def _parts(lines: int) -> list[slice]:
    return [slice(start, start + _LINES) for start in range(0, lines, _LINES)]


def _taps(length: int, resized: int, *, clamp_weights: bool) -> tuple[IndexArray, IndexArray, NDArray[np.int32]]:
    """Along one axis, for every output pixel: its two source indices and their weights (2, resized) in units of 1/2048.

    Beyond the border both indices are the border pixel. Horizontally OpenCV then gives one of them the whole weight;
    vertically it leaves the weights as they are, which matters because each product is truncated.
    """
    step = 1.0 / (resized / length)
    position = ((np.arange(resized) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(position)
    fraction = position - first
    if clamp_weights:
        fraction[(first < 0) | (first >= length - 1)] = 0
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(2048)).astype(np.int32)
    before = first.astype(np.int64)
    return before.clip(0, length - 1), (before + 1).clip(0, length - 1), weights


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of masks (n, H, W) to (n, h, w), equal to OpenCV's INTER_NEAREST, on the CPU."""
    pixels = masks.cpu().numpy()
    # Copying whole rows is faster than picking pixels; pixels are picked where there are fewer rows.
    for axis in (2, 1) if size[0] > masks.shape[1] else (1, 2):
        length, resized = pixels.shape[axis], size[axis - 1]
        if length != resized:
            step = 1.0 / (resized / length)
            index = (np.arange(resized) * step).astype(np.int64).clip(max=length - 1)
            pixels = pixels.take(index, axis=axis)
    return torch.from_numpy(pixels).to(masks.device)
