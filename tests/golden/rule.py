"""The rule that gives the recorded cases their weights and images: every value is a function of its name or position.

Outputs of the official PIIP code (commit 7a8eceb, float32, CPU) on these weights and images are recorded in this
folder.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

_SMALL = (
    "pos_embed", "cls_token", "relative_position_bias_table", "level_embeds", "query_embed", "label_embedding"
)  # fmt: skip
_CLASSIFIERS = ("rpn_cls.", "fc_cls.", "cls_branches.", "conv_logits.", "conv_seg.")
_REGRESSORS = ("rpn_reg.", "fc_reg.", "reg_branches.")
_GAINS = ("gamma", "gamma_1", "gamma_2", "ca_gamma", "cffn_gamma", "layer_scale_parameter")
_HEADS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "decode_head.", "auxiliary_head.")


def golden_value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of the tensor with an official state-dict key."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    noise = np.asarray(generator.standard_normal(shape, dtype=np.float32), dtype=np.float32).reshape(shape)
    one, tenth = np.float32(1), np.float32(0.1)
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        return one + tenth * np.abs(noise)
    if last == "running_mean":
        return tenth * noise
    if key.endswith("sampling_offsets.bias"):
        return np.float32(2) * noise
    if any(name in key for name in _SMALL):
        return np.float32(0.02) * noise
    if noise.ndim >= 2:
        full = key.startswith(_HEADS) or key.endswith(("qkv.weight", "in_proj.weight", "in_proj_weight"))
        scale = 1.0 if full else 0.5
        if any(name in key for name in _CLASSIFIERS) or re.search(r"(^|\.)branch\d\.head\.weight$", key):
            scale = 4.0
        if any(name in key for name in _REGRESSORS):
            scale = 0.5
        return noise * np.float32(scale / math.sqrt(math.prod(shape[1:])))
    if last == "weight" or last in _GAINS or re.search(r"(^|_)w[1-4]$", last):
        return one + tenth * noise
    return tenth * noise


def golden_image(shape: tuple[int, int, int, int], valid: list[tuple[int, int]]) -> np.ndarray:
    """A normalised image batch (B, 3, H, W), float32, zero outside each image's valid (h, w)."""
    batch, channels, height, width = shape
    generator = np.random.default_rng(0)
    y = np.arange(height, dtype=np.float64)[:, None] / height
    x = np.arange(width, dtype=np.float64)[None, :] / width
    images = np.zeros(shape)
    for b in range(batch):
        fx, fy = generator.uniform(-12, 12, 8), generator.uniform(-12, 12, 8)
        for c in range(channels):
            amplitude, phase = generator.uniform(0.2, 0.8, 8), generator.uniform(0, 2 * np.pi, 8)
            for k in range(8):
                images[b, c] += amplitude[k] * np.sin(2 * np.pi * (fx[k] * x + fy[k] * y) + phase[k])
            images[b, c] += 0.2 * generator.standard_normal((height, width))
    images = images.astype(np.float32)
    for b, (h, w) in enumerate(valid):
        images[b, :, h:, :] = 0
        images[b, :, :, w:] = 0
    return images


def recorded_positions(size: int, count: int) -> np.ndarray:
    """Which entries of a flattened array of `size` values are recorded."""
    return np.arange(size) if size <= count else np.random.default_rng(1).integers(0, size, size=count)


def golden_targets(valid: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes (n, 4) xyxy, labels (n,) and masks (n, h, w), ellipses inside the boxes, of the recorded training cases."""
    fractions = [
        [[0.05, 0.1, 0.45, 0.6], [0.3, 0.25, 0.95, 0.9], [0.5, 0.05, 0.7, 0.35], [0.1, 0.65, 0.3, 0.95], [0.6, 0.6,
        0.65, 0.68]], [[0.1, 0.1, 0.9, 0.9], [0.4, 0.3, 0.6, 0.5], [0.02, 0.5, 0.2, 0.98]],
    ]  # fmt: skip
    labels = [[0, 17, 56, 2, 79], [15, 0, 63]]
    targets = []
    for index, (h, w) in enumerate(valid):
        boxes = np.array(fractions[index % 2], np.float32) * np.array([w, h, w, h], np.float32)
        y, x = np.mgrid[0:h, 0:w].astype(np.float64) + 0.5
        masks = [
            ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
            for x1, y1, x2, y2 in boxes.astype(np.float64)
        ]
        targets.append((boxes, np.array(labels[index % 2], np.int64), np.stack(masks).astype(np.uint8)))
    return targets
