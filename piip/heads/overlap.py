"""How much boxes overlap: IoU and generalised IoU, for any batch and without a host synchronisation.

Boxes are absolute xyxy. The arithmetic, and so the last bit of every value and gradient, is that of torchvision's
operators, of which some take no batch and one indexes by a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-7  # of the loss, against divisions by zero


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (..., N, M) of boxes (..., N, 4) with others (..., M, 4)."""
    intersection, union = _intersection_and_union(boxes[..., :, None, :], others[..., None, :, :])
    return intersection / union


def pairwise_generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (..., N, M) (Rezatofighi et al., 2019) of boxes (..., N, 4) with others (..., M, 4)."""
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    intersection, union = _intersection_and_union(boxes, others)
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    enclosing = (high - low).clamp(min=0).prod(dim=-1)
    return intersection / union - (enclosing - union) / enclosing


def _intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (...) of boxes (..., 4) and others (..., 4), which broadcast."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection, _area(boxes) + _area(others) - intersection


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def generalized_iou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """1 - generalised IoU (...) of each of boxes (..., 4) with its own one of others (..., 4), differentiable."""
    left, top, right, bottom = boxes.unbind(-1)
    other_left, other_top, other_right, other_bottom = others.unbind(-1)
    width = torch.minimum(right, other_right) - torch.maximum(left, other_left)
    height = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    intersection = torch.where((height > 0) & (width > 0), width * height, 0)
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top) - intersection
    enclosing_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    enclosing_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    enclosing = enclosing_width * enclosing_height
    return 1 - (intersection / (union + EPSILON) - (enclosing - union) / (enclosing + EPSILON))
