"""Overlaps of boxes are those of torchvision's operators, to the last bit of every value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou, generalized_box_iou_loss

from piip.heads.overlap import generalized_iou_loss, pairwise_generalized_iou, pairwise_iou


def random_boxes(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 50
    return torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator) * 40], dim=-1)


@pytest.mark.parametrize(("ours", "theirs"), [(pairwise_iou, box_iou), (pairwise_generalized_iou, generalized_box_iou)])
def test_pairs_of_every_image_are_those_of_one_image_at_a_time(ours, theirs) -> None:
    boxes, others = random_boxes(3, 40, seed=0), random_boxes(3, 7, seed=1)
    boxes[0, :5] = others[0, :5]
    expected = torch.stack([theirs(*image) for image in zip(boxes, others, strict=True)])
    assert torch.equal(ours(boxes, others), expected)


def test_the_loss_and_its_gradients_are_torchvisions() -> None:
    boxes, others = random_boxes(3, 60, seed=0), random_boxes(3, 60, seed=1)
    boxes[0, :10] = others[0, :10]
    boxes[1, :10, 0] = others[1, :10, 2]  # they touch
    weights = torch.rand(3, 60, generator=torch.Generator().manual_seed(2))
    values, gradients = [], []
    for loss in (generalized_iou_loss, generalized_box_iou_loss):
        given = boxes.clone().requires_grad_(), others.clone().requires_grad_()
        values.append(loss(*given))
        gradients.append(torch.autograd.grad((values[-1] * weights).sum(), given))
    assert torch.equal(*values)
    assert all(map(torch.equal, *gradients))
