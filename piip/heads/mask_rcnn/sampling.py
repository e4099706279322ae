"""Which boxes learn from which object: assignment by IoU and random sampling, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

# What `assign` says of a box that belongs to no object.
BACKGROUND = -1
IGNORED = -2


def assign(boxes: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, min_iou: float) -> Tensor:
    """The object each of boxes (n, 4) belongs to, of objects (g, 4).

    A box belongs to the object it overlaps most if their IoU is at least positive_iou, and to the background below
    negative_iou. Then every object also takes the boxes that overlap it most, several if equal, from an IoU of min_iou
    on; a later object takes them from an earlier one (Ren et al., 2015, section 3.1.2).
    Returns (n,) int64: index of the object, BACKGROUND or IGNORED.
    """
    if not len(boxes) or not len(objects):
        return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    iou = box_iou(objects, boxes)
    best_iou, best = iou.max(dim=0)
    assigned = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
    assigned = torch.where(best_iou >= positive_iou, best, assigned)

    highest = iou.max(dim=1, keepdim=True).values
    takes = (iou == highest) & (highest >= min_iou)
    number = torch.arange(1, len(objects) + 1, dtype=torch.int32, device=boxes.device)
    last = (takes * number[:, None]).amax(dim=0).long() - 1
    return torch.where(last >= 0, last, assigned)


def sample(assigned: Tensor, *, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draws boxes to learn from: positives up to their fraction of count, negatives for the rest.

    assigned: (n,) as from `assign`.
    Returns two disjoint masks (n,): positives and negatives drawn.
    """
    order = torch.randperm(len(assigned), device=assigned.device)
    shuffled = assigned[order]
    positive = shuffled >= 0
    positive &= positive.cumsum(0) <= int(count * positive_fraction)
    negative = shuffled == BACKGROUND
    negative &= negative.cumsum(0) <= count - positive.sum()
    drawn = torch.zeros(2, len(assigned), dtype=torch.bool, device=assigned.device)
    drawn[:, order] = torch.stack([positive, negative])
    return drawn[0], drawn[1]
