"""Which boxes learn from which object: assignment by IoU and random sampling, without a host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piip.heads.overlap import pairwise_iou

# What `assign` returns for a box that belongs to no object.
BACKGROUND = -1
IGNORED = -2

# Pairs of a box and an object that are compared together: 256 MiB of float32.
MAX_PAIRS = 2**26


def assign(boxes: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, min_iou: float) -> Tensor:
    """The object each of boxes (B, N, 4) belongs to, of the objects (B, G, 4) in its image.

    A box belongs to the object it overlaps most if their IoU is at least positive_iou, and to the background below
    negative_iou. Then every object also takes the boxes that overlap it most, several if equal, from an IoU of min_iou
    on; a later object takes them from an earlier one (Ren et al., 2015, section 3.1.2).
    Objects of no size, such as pad the images that have fewer, get no box.
    Returns (B, N) int64: index of the object, BACKGROUND or IGNORED.
    """
    pairs = boxes.shape[1] * objects.shape[1]
    if not pairs:
        return torch.full(boxes.shape[:2], BACKGROUND, dtype=torch.int64, device=boxes.device)
    images = max(1, MAX_PAIRS // pairs)
    parts = []
    for some, targets in zip(boxes.split(images), objects.split(images), strict=True):
        iou = pairwise_iou(targets, some)
        best_iou, best = iou.max(dim=1)
        assigned = torch.where(best_iou < negative_iou, BACKGROUND, IGNORED)
        assigned = torch.where(best_iou >= positive_iou, best, assigned)

        highest = iou.amax(dim=2, keepdim=True)
        takes = (iou == highest) & (highest >= min_iou)
        number = torch.arange(1, objects.shape[1] + 1, dtype=torch.int32, device=boxes.device)
        last = (takes * number[:, None]).amax(dim=1).long() - 1
        parts.append(torch.where(last >= 0, last, assigned))
    return torch.cat(parts)


def sample(
    assigned: Tensor, *, num_samples: int, positive_fraction: float, lengths: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Draws boxes to learn from, in every image: positives up to their fraction of num_samples, negatives for the rest.

    assigned: (B, N) as from `assign`; lengths: how many of the N boxes each image has, if not all, others are IGNORED.
    Returns two disjoint masks (B, N): positives and negatives drawn.
    """
    boxes = assigned.shape[1]
    # One permutation after the other: random numbers are drawn as for one image at a time.
    order = torch.stack([_shuffled(n, boxes, assigned.device) for n in lengths or [boxes] * len(assigned)])
    shuffled = assigned.gather(1, order)
    positive = shuffled >= 0
    positive &= positive.cumsum(dim=1) <= int(num_samples * positive_fraction)
    negative = shuffled == BACKGROUND
    negative &= negative.cumsum(dim=1) <= num_samples - positive.sum(dim=1, keepdim=True)
    nothing = torch.zeros_like(positive)
    return nothing.scatter(1, order, positive), nothing.scatter(1, order, negative)


def _shuffled(count: int, length: int, device: torch.device) -> Tensor:
    """Indices (length,): the first `count` shuffled, the others behind them."""
    order = torch.randperm(count, device=device)
    return order if count == length else torch.cat([order, torch.arange(count, length, device=device)])


def drawn_first(positive: Tensor, negative: Tensor, num_samples: int) -> Tensor:
    """Indices (B, min(num_samples, N)) of the positives of masks (B, N), then of the negatives, then of the rest.

    Each of the three in its order; it is what a stable sort of the masks gives, without sorting.
    """
    index = torch.arange(positive.shape[1], device=positive.device)
    num_samples = min(num_samples, len(index))
    positives, negatives = positive.cumsum(dim=1), negative.cumsum(dim=1)
    # An index's rank: how many of its own kind lie before it, behind all of the kinds that come first.
    first_negative = positives[:, -1:]
    first_other = first_negative + negatives[:, -1:]
    rank = torch.where(negative, first_negative + negatives - 1, first_other + index - positives - negatives)
    rank = torch.where(positive, positives - 1, rank)
    # Ranks beyond the number of samples are written to one element more, which is cut off.
    first = torch.zeros(len(positive), num_samples + 1, dtype=torch.int64, device=positive.device)
    return first.scatter(1, rank.clamp(max=num_samples), index.expand_as(rank))[:, :num_samples]
