"""Box arithmetic: anchors and the coding of boxes as deltas.

Boxes are float32 absolute xyxy in pixels, with continuous coordinates: a box covers x2 - x1 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.by_size import BySize

# No decoded box is more than 62.5 times wider or higher, or narrower or lower, than the box it starts from.
MAX_LOG_RATIO = abs(math.log(16 / 1000))


def make_anchors(like: Tensor, grid: tuple[int, int], stride: int, scale: float, ratios: tuple[float, ...]) -> Tensor:
    """Anchors of one pyramid level, centred on the top left corners of its cells.

    like: a tensor on the same device. grid: (H, W) of the level.
    scale: an anchor has the area of a square of scale * stride pixels.
    ratios: height to width, one anchor each.
    Returns (H * W * A, 4): rows, then columns, then ratios.
    """
    root = torch.tensor(ratios).sqrt()
    half_width, half_height = stride * (1 / root) * scale / 2, stride * root * scale / 2
    base = torch.stack([-half_width, -half_height, half_width, half_height], dim=1).to(like.device, non_blocking=True)
    y, x = (torch.arange(cells, dtype=torch.float32, device=like.device) * stride for cells in grid)
    y, x = torch.meshgrid(y, x, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1)
    return (corners[:, :, None] + base).reshape(-1, 4)


# Most steps ask for the same: the five levels of the last eight pyramids are kept.
level_anchors = BySize(make_anchors, limit=40)


def encode(boxes: Tensor, targets: Tensor, *, stds: Sequence[float]) -> Tensor:
    """Deltas (..., 4) that lead from boxes (..., 4) to targets (..., 4) (Girshick et al., 2014, appendix C).

    stds: what the deltas of x, y, width and height are divided by.
    """
    x, y, w, h = box_convert(boxes, "xyxy", "cxcywh").unbind(-1)
    target_x, target_y, target_w, target_h = box_convert(targets, "xyxy", "cxcywh").unbind(-1)
    deltas = ((target_x - x) / w, (target_y - y) / h, (target_w / w).log(), (target_h / h).log())
    return torch.stack([delta / std for delta, std in zip(deltas, stds, strict=True)], dim=-1)


def decode(boxes: Tensor, deltas: Tensor, *, stds: Sequence[float]) -> Tensor:
    """The inverse of `encode`: boxes (..., 4) moved by deltas (..., 4)."""
    x, y, w, h = box_convert(boxes, "xyxy", "cxcywh").unbind(-1)
    dx, dy, dw, dh = (delta * std for delta, std in zip(deltas.unbind(-1), stds, strict=True))
    dw, dh = (d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) for d in (dw, dh))
    return box_convert(torch.stack([x + w * dx, y + h * dy, w * dw.exp(), h * dh.exp()], dim=-1), "cxcywh", "xyxy")


def clip(boxes: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes (B, N, 4) cut off at the borders of their images, whose valid (h, w) are given."""
    limits = torch.tensor([[(w, h, w, h)] for h, w in image_sizes], dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limits.to(boxes.device, non_blocking=True))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows index (B, n) of x (B, N, C), in each image its own: (B, n, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
