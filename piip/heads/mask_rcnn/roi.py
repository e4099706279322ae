"""Regions of interest: pooling from the pyramid, the box head and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from piip import host
from piip.heads.mask_rcnn.boxes import clip, decode, encode, take_rows
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.rpn import Proposals
from piip.heads.mask_rcnn.sampling import IGNORED, assign, drawn_first, sample
from piip.heads.mask_rcnn.suppression import best, suppress
from piip.ops.exported import is_exporting

POOLED = 7
FINEST_CELLS = 14  # boxes up to twice this many cells across (root of their area) are pooled from the finest level
MATCH_IOU = 0.5
POSITIVE_FRACTION = 0.25
STDS = (0.1, 0.1, 0.2, 0.2)
UNUSED = -1  # label of a row that takes no part in the losses
CANDIDATES = 2048  # pairs of a box and a class; a network that has learned finds some hundred in an image


def pool(features: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int) -> Tensor:
    """RoIAlign (He et al., 2017), each box from the pyramid level that suits its size (Lin et al., 2017, equation 1).

    features: maps (B, C, H, W), finest first, with their strides; boxes: (n, 4) per image, in pixels.
    Returns (sum of n, C, size, size) float32.
    """
    rois = torch.cat([F.pad(image_boxes, (1, 0), value=image) for image, image_boxes in enumerate(boxes)])
    return pool_rois(features, strides, rois, size)


def pool_rois(features: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int) -> Tensor:
    """As `pool`, of rois (n, 5): the index of an image, and a box in its pixels."""
    levels = box_levels(rois[:, 1:], strides)

    def align(level: int, rois: Tensor) -> Tensor:
        x, scale = features[level].float(), 1 / strides[level]
        return roi_align(x, rois, size, spatial_scale=scale, sampling_ratio=0, aligned=True)

    if is_exporting():
        # A program reads no numbers: every level pools all boxes. Engines disagree on what an empty box gives.
        rows = [(levels == level)[:, None] for level in range(len(features))]
        parts = [align(level, torch.where(own, rois, 0)) for level, own in enumerate(rows)]
        return reduce(torch.add, (torch.where(own[..., None, None], part, 0) for own, part in zip(rows, parts)))
    if host.is_host(rois.device) or torch.are_deterministic_algorithms_enabled():
        order = levels.argsort(stable=True)
        counts = torch.stack([(levels == level).sum() for level in range(len(features))]).tolist()
        pooled = [align(level, own) for level, own in enumerate(rois[order].split(counts))]
        return torch.cat(pooled)[order.argsort()]
    # A device would have to be waited for: there every level pools all boxes, those of other levels shrunk to nothing,
    # which takes no sample and gives 0, except in torchvision's deterministic form, which takes all samples always.
    total = align(0, torch.where((levels == 0)[:, None], rois, 0))
    for level in range(1, len(features)):
        total += align(level, torch.where((levels == level)[:, None], rois, 0))
    return total


def box_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Pyramid level (n,) int64 that each of boxes (n, 4), in pixels, is pooled from."""
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (scale / (FINEST_CELLS * strides[0]) + 1e-6).log2().floor().clamp(0, len(strides) - 1).long()


class Samples(NamedTuple):
    """Boxes of one image that the losses see; the first `num_positives` of them are positive: they hold an object.

    boxes (n, 4); labels (n,): class, background (the number of classes) or UNUSED; objects (n,): index of the object
    of each positive.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    num_positives: int


class BoxHead(nn.Module):
    """Two shared layers, then a class and, for every class, a box.

    channels: of the pyramid. The background is the last class.
    """

    def __init__(self, config: MaskRCNNConfig, channels: int) -> None:
        super().__init__()
        num_classes, fc_channels = config.num_classes, config.fc_channels
        self.config, self.num_classes = config, num_classes
        self.fc1 = nn.Linear(channels * POOLED**2, fc_channels)
        self.fc2 = nn.Linear(fc_channels, fc_channels)
        self.cls = nn.Linear(fc_channels, num_classes + 1)
        self.reg = nn.Linear(fc_channels, num_classes * 4)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.cls.weight, std=0.01)
        nn.init.normal_(self.reg.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.cls, self.reg):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled boxes (R, C, 7, 7) -> float32 class logits (R, classes + 1) and deltas (R, classes, 4)."""
        hidden = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        return self.cls(hidden).float(), self.reg(hidden).float().unflatten(1, (self.num_classes, 4))

    @torch.no_grad()
    def sample(self, proposals: list[Tensor], objects: list[Tensor], labels: list[Tensor]) -> list[Samples]:
        """Draws what to learn from, per image, among proposals (n, 4) and the objects (g, 4) with their labels (g,).

        It waits for the device once.
        """
        assigned = assign(
            pad_sequence(proposals, batch_first=True),
            pad_sequence(objects, batch_first=True),
            positive_iou=MATCH_IOU,
            negative_iou=MATCH_IOU,
            min_iou=MATCH_IOU,
        )
        # Per image first the objects, which belong to themselves, then the proposals, then padding.
        boxes = [torch.cat(image) for image in zip(objects, proposals, strict=True)]
        lengths = [len(image_boxes) for image_boxes in boxes]
        itself = torch.arange(max(map(len, objects)), device=assigned.device)
        owners = [
            torch.cat([itself[: len(o)], a[: len(p)]]) for o, a, p in zip(objects, assigned, proposals, strict=True)
        ]
        assigned = pad_sequence(owners, batch_first=True, padding_value=IGNORED)
        positive, negative = sample(
            assigned, num_samples=self.config.roi_batch, positive_fraction=POSITIVE_FRACTION, lengths=lengths
        )
        chosen = drawn_first(positive, negative, self.config.roi_batch)
        assigned = assigned.gather(1, chosen)
        # The label padded at the end is the one of the background.
        padded = F.pad(pad_sequence(labels, batch_first=True), (0, 1), value=self.num_classes)
        classes = padded.gather(1, torch.where(assigned < 0, padded.shape[1] - 1, assigned))
        classes = torch.where((positive | negative).gather(1, chosen), classes, UNUSED)
        corners = take_rows(pad_sequence(boxes, batch_first=True), chosen)
        num_positives = positive.sum(dim=1).tolist()
        return [
            Samples(corners[image, :n], classes[image, :n], assigned[image, :n], num_positives[image])
            for image, n in enumerate(min(self.config.roi_batch, length) for length in lengths)
        ]

    def loss(self, logits: Tensor, deltas: Tensor, samples: list[Samples], objects: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and L1 losses, both a mean over all rows in use.

        logits (R, classes + 1) and deltas (R, classes, 4) of all samples; objects: per image the true boxes (g, 4).
        """
        labels = torch.cat([image.labels for image in samples])
        used = (labels != UNUSED).sum().clamp(min=1)
        entropy = F.cross_entropy(logits, labels, ignore_index=UNUSED, reduction="sum")
        boxes = torch.cat([image.boxes for image in samples])
        matched = [
            F.pad(o, (0, 0, 0, 1))[image.objects.clamp(min=0)] for image, o in zip(samples, objects, strict=True)
        ]
        positive = ((labels >= 0) & (labels < self.num_classes))[:, None]
        predicted = deltas.gather(1, labels.clamp(0, self.num_classes - 1)[:, None, None].expand(-1, 1, 4))[:, 0]
        targets = encode(boxes, torch.where(positive, torch.cat(matched), boxes), stds=STDS)
        distance = torch.where(positive, (predicted - targets).abs(), 0).sum()
        return {"loss_cls": entropy / used, "loss_bbox": distance / used}

    @torch.no_grad()
    def select(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: Proposals,
        image_sizes: Sequence[tuple[int, int]],
        *,
        candidates: int = CANDIDATES,
    ) -> list[dict[str, Tensor]]:
        """Detections per image: boxes (n, 4) within its valid (h, w), scores (n,) descending, labels (n,).

        logits (B * P, classes + 1), deltas (B * P, classes, 4) of the proposals. candidates: how many pairs of a box
        and a class, the likeliest of an image, to consider; where more pass the threshold, it considers more of them.
        It waits for the device once, and for every four images.
        """
        batch = len(proposals.scores)
        scores = self.scores(logits, proposals).flatten(1)
        likeliest, pairs = best(scores, min(candidates, scores.shape[1]))
        labels = pairs % self.num_classes
        starts = take_rows(proposals.boxes, pairs // self.num_classes)
        boxes = decode(starts, take_rows(deltas.view(batch, -1, 4), pairs), stds=STDS)
        boxes = clip(boxes, image_sizes)
        keep, counts = self._suppress(boxes, likeliest, labels)
        full = (likeliest[:, -1] > self.config.score_threshold).any()
        *numbers, full = torch.cat([counts, full[None]]).tolist()
        if full and candidates < scores.shape[1]:
            return self.select(logits, deltas, proposals, image_sizes, candidates=4 * candidates)
        boxes, scores, labels = take_rows(boxes, keep), likeliest.gather(1, keep), labels.gather(1, keep)
        return [
            {"boxes": boxes[image, :n], "scores": scores[image, :n], "labels": labels[image, :n]}
            for image, n in enumerate(numbers)
        ]

    def scores(self, logits: Tensor, proposals: Proposals) -> Tensor:
        """Probabilities (B, P, classes) from logits (B * P, classes + 1); 0 behind the last proposal of an image."""
        batch, rows = proposals.scores.shape
        real = torch.arange(rows, device=logits.device) < proposals.counts[:, None]
        scores = logits.softmax(dim=1)[:, : self.num_classes].unflatten(0, (batch, rows))
        return torch.where(real[..., None], scores, 0)

    def boxes(self, deltas: Tensor, proposals: Proposals, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """The box of every class (B, P, classes, 4) within the valid (h, w), from deltas (B * P, classes, 4)."""
        boxes = decode(proposals.boxes[:, :, None], deltas.unflatten(0, proposals.scores.shape), stds=STDS)
        return clip(boxes.flatten(1, 2), image_sizes).view(boxes.shape)

    def suppress_all(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """As `suppress`, of all boxes (B, P, classes, 4) and scores (B, P, classes), each class a group."""
        labels = torch.arange(self.num_classes, device=scores.device).expand(scores.shape)
        return self._suppress(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return suppress(
            boxes,
            scores,
            labels,
            scores > self.config.score_threshold,
            num_groups=self.num_classes,
            threshold=self.config.nms,
            limit=self.config.max_detections,
        )
