"""Resizing as OpenCV does it, bit by bit.

The official models were trained and measured on images resized by OpenCV's 8-bit bilinear interpolation, which works in
fixed point (11 bits per weight) and truncates twice, so that it lies 0.13 grey levels below exact interpolation on
average. torch's resizes round differently; `resize_image` repeats OpenCV's arithmetic with torch operators instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resized_size(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int]:
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
    before, after = first.clamp(0, length - 1), (first + 1).clamp(0, length - 1)
    return before.to(device), after.to(device), weights.to(device)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of masks (n, H, W) to (n, h, w), equal to OpenCV's INTER_NEAREST."""
    for dim, resized in ((1, size[0]), (2, size[1])):
        length = masks.shape[dim]
        if length != resized:
            step = 1.0 / (resized / length)
            index = (torch.arange(resized, dtype=torch.float64) * step).long().clamp_(max=length - 1)
            masks = masks.index_select(dim, index.to(masks.device))
    return masks
