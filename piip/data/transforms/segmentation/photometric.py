"""SSD's photometric distortion (Liu et al., 2016) as mmsegmentation has it, on 8-bit pixels.

Colours go through OpenCV's 8-bit HSV, in which the hue has 180 steps of two degrees; what that rounds away is part of
the released recipe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BRIGHTNESS = 32.0
_FACTORS = (0.5, 1.5)
_HUE = 18
_HUES = 180


def distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Changes brightness, contrast, saturation and hue of a uint8 RGB image (3, H, W), each with probability 1/2.

    Contrast is changed before or after saturation and hue, with probability 1/2.
    """
    if rng.integers(2):
        image = _scale(image, shift=rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = bool(rng.integers(2))
    if contrast_first:
        image = _change_contrast(image, rng)
    if rng.integers(2):
        hue, saturation, value = rgb_to_hsv(image)
        image = hsv_to_rgb(torch.stack([hue, _scale(saturation, factor=rng.uniform(*_FACTORS)), value]))
    if rng.integers(2):
        hue, saturation, value = rgb_to_hsv(image)
        turned = (hue.int() + int(rng.integers(-_HUE, _HUE))).remainder(_HUES).to(torch.uint8)
        image = hsv_to_rgb(torch.stack([turned, saturation, value]))
    return image if contrast_first else _change_contrast(image, rng)


def _change_contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    return _scale(image, factor=rng.uniform(*_FACTORS)) if rng.integers(2) else image


def _scale(pixels: Tensor, *, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    """Clipped to 0..255 and rounded down."""
    return pixels.float().mul_(factor).add_(shift).clamp_(0, 255).to(torch.uint8)


def rgb_to_hsv(image: Tensor) -> Tensor:
    """uint8 RGB (3, H, W) -> uint8 hue in 0..179, saturation and value (3, H, W), equal to OpenCV's COLOR_RGB2HSV.

    OpenCV divides by multiplying with reciprocals in units of 1/4096.
    """
    red, green, blue = pixels = image.int()
    value = pixels.amax(0)
    spread = value - pixels.amin(0)
    saturation_steps, hue_steps = _reciprocals(255), _reciprocals(_HUES / 6)
    sector = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    sector = torch.where(value == red, green - blue, sector)
    hue = (sector * hue_steps[spread] + 2048) >> 12
    saturation = (spread * saturation_steps[value] + 2048) >> 12
    return torch.stack([torch.where(hue < 0, hue + _HUES, hue), saturation, value]).to(torch.uint8)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`, as OpenCV's COLOR_HSV2RGB computes it: in float32, rounded down at the end.

    Equal but for a grey level in a few values of a thousand, where OpenCV does not round between product and sum.
    """
    hue = hsv[0].float().mul_(6 / _HUES)
    saturation, value = hsv[1:].float().mul_(1 / 255)
    sector = hue.floor()
    chroma = value * saturation
    turned = chroma * (hue - sector)
    least = value - chroma
    shades = torch.stack([value, least, value - turned, least + turned])
    order = _SECTORS[:, sector.long().remainder(6)]
    return shades.gather(0, order).mul_(255).to(torch.uint8)


# The shade of red, green and blue in each sector of the hue: 0 the value, 1 the least, 2 the falling, 3 the rising.
_SECTORS = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])


def _reciprocals(numerator: float) -> Tensor:
    """numerator / n in units of 1/4096, for n in 0..255; 0 for n = 0."""
    steps = torch.arange(256, dtype=torch.float64)
    return torch.where(steps > 0, numerator * 4096 / steps, 0.0).round().int()
