"""Contrastive denoising (Zhang et al., 2023, section 3.3): disturbed objects that the decoder learns to restore.

Queries come in groups. A group holds every object twice: once disturbed a little, to be restored, and once more, to be
called background.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.dino.answers import inverse_sigmoid
from piip.heads.dino.objects import Objects


class Noise(NamedTuple):
    """What disturbs the 2 * G copies of the objects (B, N) of a batch; copies alternate between little and more.

    flipped: (2G, B, N) bool, which labels change; labels: (2G, B, N), to what; shift: (2G, B, N, 4), how far the four
    sides move, in half widths and heights of the box.
    """

    flipped: Tensor
    labels: Tensor
    shift: Tensor


class Denoising(NamedTuple):
    """Queries for G groups of 2 * N objects, group by group, first the ones to restore.

    labels: (B, 2GN), disturbed classes. boxes: (B, 2GN, 4), disturbed boxes xywh in [0, 1]. held: (B, 2GN), whether the
    query stands for an object; the others only fill up. positives: (G * N,), the queries to restore.
    """

    groups: int
    labels: Tensor
    boxes: Tensor
    held: Tensor
    positives: Tensor


def draw_noise(shape: tuple[int, int, int], *, num_classes: int, label_noise: float, device: torch.device) -> Noise:
    """shape: (2 * G, B, N). label_noise: twice the share of the labels that are drawn anew."""
    flipped = torch.rand(shape, device=device) < label_noise / 2
    labels = torch.randint(num_classes, shape, device=device)
    sign = torch.randint(2, (*shape, 4), device=device) * 2 - 1
    distance = torch.rand((*shape, 4), device=device)
    # The second of each pair moves every side by more than a half width or height.
    distance[1::2] += 1
    return Noise(flipped, labels, distance * sign)


def number_of_groups(objects: Objects, queries: int) -> int:
    """As many groups as fit into `queries` positive ones of the image with the most objects, and at least one."""
    return max(1, queries // max(1, objects.places))


def disturb(objects: Objects, noise: Noise, *, box_noise: float) -> Denoising:
    """Denoising queries of the objects; box_noise: factor on the shift of the boxes' sides."""
    copies, _, places = noise.labels.shape
    labels = torch.where(noise.flipped, noise.labels, objects.labels)
    half = objects.boxes[..., 2:].repeat(1, 1, 2) / 2
    corners = box_convert(objects.boxes, "cxcywh", "xyxy") + noise.shift * half * box_noise
    boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    # As the released code feeds boxes to the decoder: through logits that keep a distance from the borders.
    boxes = torch.where(objects.held[..., None], inverse_sigmoid(boxes).sigmoid(), 0.5)
    held = objects.held.expand(copies, -1, -1)
    labels, boxes, held = (x.transpose(0, 1).flatten(1, 2) for x in (labels, boxes, held))
    order = torch.arange(copies * places, device=labels.device).view(copies // 2, 2, places)
    return Denoising(copies // 2, labels, boxes, held, positives=order[:, 0].flatten())


def hidden_queries(denoising: Denoising, queries: int) -> Tensor:
    """Which queries must not see which: (Q, Q) bool for all denoising queries followed by `queries` others.

    Nothing may see the objects' copies that is not of the same group; everything sees the other queries.
    """
    count = denoising.labels.shape[1]
    device = denoising.labels.device
    group = torch.arange(count, device=device) // max(1, count // denoising.groups)
    group = torch.cat([group, torch.full((queries,), -1, device=device)])
    return (group[:, None] != group) & (group >= 0)
