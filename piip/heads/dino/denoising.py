"""Contrastive denoising (Zhang et al., 2023, section 3.3): noised objects that the decoder learns to reconstruct.

Queries come in groups. A group holds every object twice: as a positive with a little noise, to be reconstructed, and as
a negative with more, to be predicted as background.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.dino.objects import Objects
from piip.heads.dino.predictions import inverse_sigmoid


class Noise(NamedTuple):
    """The noise of the 2 * G copies of the objects (B, N) of a batch; copies alternate between positive and negative.

    flipped: (2G, B, N) bool, which labels change; labels: (2G, B, N), to what; shift: (2G, B, N, 4), how far the four
    sides move, in half widths and heights of the box.
    """

    flipped: Tensor
    labels: Tensor
    shift: Tensor


class Denoising(NamedTuple):
    """Queries for G groups of 2 * N objects, group by group, in each the positives first.

    labels: (B, 2GN), noised classes. boxes: (B, 2GN, 4), noised boxes xywh in [0, 1]. valid: (B, 2GN), False for
    queries that are padding. positives: (G * N,), indices of the positive queries.
    """

    groups: int
    labels: Tensor
    boxes: Tensor
    valid: Tensor
    positives: Tensor


def draw_noise(shape: tuple[int, int, int], *, num_classes: int, label_noise: float, device: torch.device) -> Noise:
    """shape: (2 * G, B, N). label_noise: twice the share of the labels that are drawn anew."""
    flipped = torch.rand(shape, device=device) < label_noise / 2
    labels = torch.randint(num_classes, shape, device=device)
    sign = torch.randint(2, (*shape, 4), device=device) * 2 - 1
    distance = torch.rand((*shape, 4), device=device)
    # The negative of each pair moves every side by more than a half width or height.
    distance[1::2] += 1
    return Noise(flipped, labels, distance * sign)


def number_of_groups(objects: Objects, queries: int) -> int:
    """As many groups as fit into `queries` positive ones of the image with the most objects, and at least one."""
    return max(1, queries // max(1, objects.labels.shape[1]))


def add_noise(objects: Objects, noise: Noise, *, box_noise: float) -> Denoising:
    """Denoising queries of the objects; box_noise: factor on the shift of the boxes' sides."""
    copies, _, max_objects = noise.labels.shape
    labels = torch.where(noise.flipped, noise.labels, objects.labels)
    half = objects.boxes[..., 2:].repeat(1, 1, 2) / 2
    corners = box_convert(objects.boxes, "cxcywh", "xyxy") + noise.shift * half * box_noise
    boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    # As the released code feeds boxes to the decoder: through logits that keep a distance from the borders.
    boxes = torch.where(objects.valid[..., None], inverse_sigmoid(boxes).sigmoid(), 0.5)
    valid = objects.valid.expand(copies, -1, -1)
    labels, boxes, valid = (x.transpose(0, 1).flatten(1, 2) for x in (labels, boxes, valid))
    order = torch.arange(copies * max_objects, device=labels.device).view(copies // 2, 2, max_objects)
    return Denoising(copies // 2, labels, boxes, valid, positives=order[:, 0].flatten())


def attention_mask(denoising: Denoising, queries: int) -> Tensor:
    """(Q, Q) bool, True where a query must not attend, for all denoising queries followed by `queries` others.

    A denoising query is seen by its own group alone; the other queries are seen by all.
    """
    count = denoising.labels.shape[1]
    device = denoising.labels.device
    group = torch.arange(count, device=device) // max(1, count // denoising.groups)
    group = torch.cat([group, torch.full((queries,), -1, device=device)])
    return (group[:, None] != group) & (group >= 0)
