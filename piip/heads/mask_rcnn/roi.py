"""What happens to a region of interest: pooling from the pyramid, the box head and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, roi_align

from piip.heads.mask_rcnn.boxes import decode, encode, grouped_nms
from piip.heads.mask_rcnn.sampling import assign, sample

POOLED = 7
FINEST_CELLS = 14  # boxes up to twice this many cells across (root of their area) are pooled from the finest level
MATCH_IOU = 0.5
POSITIVE_FRACTION = 0.25
STDS = (0.1, 0.1, 0.2, 0.2)
UNUSED = -1  # label of a row that takes no part in the losses


def pool(features: Sequence[Tensor], strides: Sequence[int], boxes: list[Tensor], size: int) -> Tensor:
    """RoIAlign (He et al., 2017), each box from the pyramid level that suits its size (Lin et al., 2017, equation 1).

    features: maps (B, C, H, W), finest first, with their strides; boxes: (n, 4) per image, in pixels.
    Returns (sum of n, C, size, size) float32.
    """
    rois = torch.cat([F.pad(image_boxes, (1, 0), value=image) for image, image_boxes in enumerate(boxes)])
    levels = box_levels(rois[:, 1:], strides)
    order = levels.argsort(stable=True)
    counts = torch.stack([(levels == level).sum() for level in range(len(features))]).tolist()
    pooled = [
        roi_align(x.float(), level_rois, size, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
        for x, stride, level_rois in zip(features, strides, rois[order].split(counts), strict=True)
    ]
    return torch.cat(pooled)[order.argsort()]


def box_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Pyramid level (n,) int64 that each of boxes (n, 4), in pixels, is pooled from."""
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (scale / (FINEST_CELLS * strides[0]) + 1e-6).log2().floor().clamp(0, len(strides) - 1).long()


class Samples(NamedTuple):
    """Boxes of one image that the losses see; the first `held` of them hold an object.

    boxes (n, 4); labels (n,): class, background (the number of classes) or UNUSED; objects (n,): index of the object
    where a row holds one.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    held: int


class BoxHead(nn.Module):
    """Two shared layers, then a class and, for every class, a box.

    channels: of the pyramid. The background is the last class.
    batch: proposals per image that the losses see.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        fc_channels: int,
        batch: int,
        score_threshold: float,
        nms: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.batch = num_classes, batch
        self.score_threshold, self.nms, self.max_detections = score_threshold, nms, max_detections
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
        """Draws what to learn from, per image, among proposals (n, 4) and the objects (g, 4) with their labels (g,)."""
        drawn = [self._draw(*image) for image in zip(proposals, objects, labels, strict=True)]
        counts = torch.stack([positives for *_, positives in drawn]).tolist()
        return [Samples(*image[:3], held) for image, held in zip(drawn, counts, strict=True)]

    def _draw(self, proposals: Tensor, objects: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assigned = assign(proposals, objects, positive_iou=MATCH_IOU, negative_iou=MATCH_IOU, min_iou=MATCH_IOU)
        assigned = torch.cat([torch.arange(len(objects), device=assigned.device), assigned])
        boxes = torch.cat([objects, proposals])
        positive, negative = sample(assigned, count=self.batch, positive_fraction=POSITIVE_FRACTION)
        chosen = (positive * 2 + negative * 1).argsort(descending=True, stable=True)[: self.batch]
        # The label padded at the end is the one that BACKGROUND, -1, picks.
        labels = F.pad(labels, (0, 1), value=self.num_classes)[assigned]
        labels = torch.where(positive | negative, labels, UNUSED)
        return boxes[chosen], labels[chosen], assigned[chosen], positive.sum()

    def loss(self, logits: Tensor, deltas: Tensor, samples: list[Samples], objects: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and L1 losses, both a mean over all rows in use.

        logits (R, classes + 1) and deltas (R, classes, 4) of all samples; objects: per image the true boxes (g, 4).
        """
        labels = torch.cat([image.labels for image in samples])
        used = (labels != UNUSED).sum().clamp(min=1)
        entropy = F.cross_entropy(logits, labels, ignore_index=UNUSED, reduction="sum")
        distance = logits.new_zeros(())
        for rows, image, boxes in zip(deltas.split([len(s.boxes) for s in samples]), samples, objects, strict=True):
            held = slice(image.held)
            predicted = rows[torch.arange(image.held, device=rows.device), image.labels[held]]
            wanted = encode(image.boxes[held], boxes[image.objects[held]], stds=STDS)
            distance = distance + (predicted - wanted).abs().sum()
        return {"loss_cls": entropy / used, "loss_bbox": distance / used}

    @torch.no_grad()
    def select(self, logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detections of one image: boxes (n, 4) within its valid (h, w), scores (n,) descending, labels (n,).

        logits (R, classes + 1), deltas (R, classes, 4) of its proposals (R, 4).
        """
        scores = logits.softmax(dim=1)[:, : self.num_classes]
        rows, labels = (scores > self.score_threshold).nonzero(as_tuple=True)
        scores = scores[rows, labels]
        boxes = clip_boxes_to_image(decode(proposals[rows], deltas[rows, labels], stds=STDS), size)
        keep = grouped_nms(boxes, scores, labels, threshold=self.nms, limit=self.max_detections)
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
