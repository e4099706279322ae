"""Bipartite matching of queries and objects, and the losses (Carion et al., 2020; Zhu et al., 2021)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from piip.heads.dino.objects import Objects
from piip.heads.dino.predictions import Predictions
from piip.heads.overlap import generalized_iou_loss, pairwise_generalized_iou
from piip.host import HostCopy

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
CLS_COST, BOX_COST, IOU_COST = 2.0, 5.0, 2.0
CLS_WEIGHT, BOX_WEIGHT, IOU_WEIGHT = 1.0, 5.0, 2.0
# Stands for a cost that is not a number, so that the step fails with the loss that shows it and not in the matching.
NO_COST = 1e8


class Matching:
    """Matches each object with a query at the least total cost, on the host, while the device goes on.

    predictions: of K stages. The costs of all stages and images travel to the host together; it is the one time that
    the head waits for the device in a training step.
    """

    def __init__(self, predictions: Predictions, objects: Objects) -> None:
        self._counts, self._device = objects.counts, predictions.logits.device
        self._costs = HostCopy(_costs(predictions, objects))

    def solve(self) -> Tensor:
        """(K, B, N) int64 queries, -1 where there is none; waits until the costs have arrived."""
        # Imported here: only training needs it, and it is a fifth of a second.
        from scipy.optimize import linear_sum_assignment

        costs = self._costs.wait().numpy()
        matched = np.full((*costs.shape[:2], costs.shape[3]), -1)
        for stage, image in np.ndindex(*costs.shape[:2]):
            queries, found = linear_sum_assignment(costs[stage, image, :, : self._counts[image]])
            matched[stage, image, found] = queries
        return torch.from_numpy(matched).to(self._device, non_blocking=True)


@torch.no_grad()
def _costs(predictions: Predictions, objects: Objects) -> Tensor:
    """(K, B, Q, N), the cost of matching each query with each object; meaningless in the padding of the objects."""
    p = predictions.logits.sigmoid()
    # Not F.logsigmoid: scores that round to 1 must cost what they cost in the released matcher.
    background = -(1 - p + 1e-12).log() * (1 - ALPHA) * p**GAMMA
    foreground = -(p + 1e-12).log() * ALPHA * (1 - p) ** GAMMA
    cls_cost = (foreground - background).gather(3, objects.labels[:, None].expand(*p.shape[:3], -1))
    boxes, targets = predictions.boxes, objects.boxes.expand(len(p), -1, -1, -1)
    box_cost = torch.cdist(boxes, targets, p=1)
    corners, target_corners = (box_convert(x, "cxcywh", "xyxy") * objects.pixels for x in (boxes, targets))
    iou_cost = -pairwise_generalized_iou(corners, target_corners)
    cost = CLS_COST * cls_cost + BOX_COST * box_cost + IOU_COST * iou_cost
    return cost.nan_to_num(nan=NO_COST, posinf=NO_COST, neginf=-NO_COST)


def losses(predictions: Predictions, matched: Tensor, objects: Objects, normaliser: Tensor) -> dict[str, Tensor]:
    """Focal, L1 and GIoU losses of every stage, by name: (K,) each.

    matched: (K or 1, B, N), the query of each object, negative for none; queries without an object are background.
    normaliser: number of objects to divide by.
    """
    stages, _, queries, num_classes = predictions.logits.shape
    matched = matched.expand(stages, -1, -1)
    valid = objects.valid & (matched >= 0)
    # Padding is written to one query more, which is cut off.
    labels = torch.full((*predictions.logits.shape[:2], queries + 1), num_classes, device=matched.device)
    labels = labels.scatter(2, torch.where(valid, matched, queries), objects.labels.expand_as(matched))
    classes = torch.arange(num_classes, device=labels.device)
    targets = (labels[:, :, :queries, None] == classes).to(predictions.logits)
    cls = sigmoid_focal_loss(predictions.logits, targets, alpha=ALPHA, gamma=GAMMA).sum((1, 2, 3))

    boxes = predictions.boxes.gather(2, matched.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
    distance = torch.where(valid, (boxes - objects.boxes).abs().sum(-1), 0).sum((1, 2))
    corners, target_corners = (
        box_convert(x, "cxcywh", "xyxy") * objects.pixels for x in (boxes, objects.boxes.expand_as(boxes))
    )
    giou = torch.where(valid, generalized_iou_loss(corners, target_corners), 0).sum((1, 2))
    weighted = {"loss_cls": CLS_WEIGHT * cls, "loss_bbox": BOX_WEIGHT * distance, "loss_iou": IOU_WEIGHT * giou}
    return {name: loss / normaliser for name, loss in weighted.items()}


def average_over_processes(counts: list[int], device: torch.device) -> Tensor:
    """The mean of each count over the training processes, whose images hold different numbers; at least 1."""
    values = torch.tensor(counts, dtype=torch.float32).to(device, non_blocking=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values /= torch.distributed.get_world_size()
    return values.clamp(min=1)
