"""All levels of an image pyramid from one read of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from piip.ops import reference
from piip.ops._checks import FLOATS


def pyramid_resize(
    images: Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    scale_factors: Sequence[float | tuple[float, float]] | None = None,
    *,
    mode: str = "bilinear",
    antialias: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    valid_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Tensor]:
    """Resizes a batch to every level of a pyramid, normalising on the way; equals `F.interpolate` level by level.

    images: float (B, C, H, W), or uint8 (B, 3, H, W) or (B, H, W, 3).
    sizes: (H_i, W_i) per level, sampled at steps of in / out. Or
    scale_factors: per level, size floor(in * factor) sampled at steps of 1 / factor (align_corners=False in both).
    mode: "bilinear" or "bicubic". antialias: as in `F.interpolate`.
    mean, std: per channel in the units of images; (x - mean) / std comes before everything else.
    dtype: of the levels; that of the images by default, float32 for uint8.
    valid_sizes: (h, w) per image; beyond it the normalised image is zero, as if padded after normalisation.
    Returns one (B, C, H_i, W_i) tensor per level. A level of the input's own size is not resampled, and where nothing
    needs converting it is the input tensor itself. Gradients flow to float images.
    Raises ValueError or TypeError naming the argument.
    """
    if images.dtype == torch.uint8:
        if images.shape[1] != 3 and images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        dtype = dtype or torch.float32
    elif images.dtype not in FLOATS:
        raise TypeError(f"images must be uint8 or a float dtype, got {images.dtype}")
    dtype = dtype or images.dtype
    if (sizes is None) == (scale_factors is None):
        raise ValueError("give exactly one of sizes and scale_factors")
    height, width = images.shape[2:]
    if scale_factors is not None:
        factors = [(float(f), float(f)) if isinstance(f, (int, float)) else (float(f[0]), float(f[1])) for f in scale_factors]
        shapes = [(math.floor(height * fy), math.floor(width * fx)) for fy, fx in factors]
    else:
        assert sizes is not None
        factors = [None] * len(sizes)  # type: ignore[list-item]
        shapes = [(int(h), int(w)) for h, w in sizes]
    return reference.pyramid_resize(images, shapes, factors, mode, antialias, mean, std, dtype, valid_sizes)
