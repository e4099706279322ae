"""Learned positions and patches, resampled to another grid the way the official code does."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def resample_pos_embed(pos_embed: Tensor, tokens: int) -> Tensor:
    """A learned (1, L, C) position embedding, without prefix tokens, resized (bicubic) to `tokens` square cells."""
    length = pos_embed.shape[1]
    side, target = int(length**0.5), int(tokens**0.5)
    patches = pos_embed[:, length - side * side :].float()
    return resample_abs_pos_embed(patches, [target] * 2, [side] * 2, num_prefix_tokens=0, antialias=False)


def resample_patches(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A patch projection (C, 3, h, w) resized (bicubic) to patches of another size."""
    return F.interpolate(weight.float(), size=size, mode="bicubic", align_corners=False)


def resample_position_bias(table: Tensor, entries: int) -> Tensor:
    """A table of relative position biases (n, M), resized to `entries` offsets of a larger square window.

    Entries of a class token, which BEiT puts last, are dropped. As in BEiT (Bao et al., 2022), old offsets are placed
    at distances that grow geometrically up to the largest new one, and a cubic spline is laid through them.
    """
    side, target = int(table.shape[0] ** 0.5), int(entries**0.5)
    biases = table[: side * side].float()
    if side == target:
        return biases
    # It takes half a second to import, and hardly any network needs it.
    from scipy.interpolate import RectBivariateSpline

    half, reach = side // 2, target // 2
    ratio = _geometric_ratio(half, reach)
    distances = np.cumsum(ratio ** np.arange(half))
    old = np.concatenate([-distances[::-1], [0.0], distances])
    new = np.arange(-reach, reach + 1, dtype=np.float64)
    columns = [
        RectBivariateSpline(old, old, head.view(side, side).numpy())(new, new).reshape(-1) for head in biases.unbind(1)
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _geometric_ratio(terms: int, total: float) -> float:
    """The ratio at which the first `terms` powers, from 1 on, sum to `total`; searched between 1.01 and 1.5."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        if (1 - middle**terms) / (1 - middle) > total:
            high = middle
        else:
            low = middle
    return middle
