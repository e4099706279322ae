"""Region proposal network (Ren et al., 2015, "Faster R-CNN") on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from piip.features import FeatureSpec
from piip.heads.mask_rcnn.boxes import decode, encode, grouped_nms, make_anchors
from piip.heads.mask_rcnn.sampling import assign, sample

POSITIVE_IOU, NEGATIVE_IOU, MIN_IOU = 0.7, 0.3, 0.3
POSITIVE_FRACTION = 0.5
STDS = (1.0, 1.0, 1.0, 1.0)


class RPNOutputs(NamedTuple):
    """Per level, in float32: logits (B, N) and deltas (B, N, 4) of its N = H * W * A anchors (N, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """Says of every anchor whether it lies on an object, and how to move it there.

    specs: the pyramid, one width for all levels.
    batch: anchors per image that the losses see.
    proposals: the most boxes to propose per image; nms: largest IoU two proposals of a level may have.
    """

    def __init__(
        self,
        *,
        specs: Sequence[FeatureSpec],
        anchor_scale: float,
        anchor_ratios: Sequence[float],
        batch: int,
        proposals: int,
        nms: float,
    ) -> None:
        super().__init__()
        channels, num_anchors = specs[0].channels, len(anchor_ratios)
        self.strides = [spec.stride for spec in specs]
        self.anchor_scale, self.anchor_ratios = anchor_scale, anchor_ratios
        self.batch, self.proposals, self.nms = batch, proposals, nms
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls = nn.Conv2d(channels, num_anchors, 1)
        self.reg = nn.Conv2d(channels, num_anchors * 4, 1)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.01)

    def forward(self, features: list[Tensor]) -> RPNOutputs:
        """Pyramid maps (B, C, H, W), finest first -> logits, deltas and anchors of every level."""
        outputs = RPNOutputs([], [], [])
        for x, stride in zip(features, self.strides, strict=True):
            hidden = F.relu(self.conv(x))
            outputs.logits.append(self.cls(hidden).permute(0, 2, 3, 1).flatten(1).float())
            outputs.deltas.append(self.reg(hidden).permute(0, 2, 3, 1).reshape(len(x), -1, 4).float())
            height, width = x.shape[2:]
            anchors = make_anchors(
                (height, width), stride=stride, scale=self.anchor_scale, ratios=self.anchor_ratios, device=x.device
            )
            outputs.anchors.append(anchors)
        return outputs

    def loss(self, outputs: RPNOutputs, objects: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and L1 loss against the objects (n, 4) of every image, each a mean over the sampled anchors."""
        anchors = torch.cat(outputs.anchors)
        total = anchors.new_zeros(())
        loss_cls, loss_bbox = [], []
        for logits, deltas, boxes in zip(
            torch.cat(outputs.logits, dim=1), torch.cat(outputs.deltas, dim=1), objects, strict=True
        ):
            assigned = assign(anchors, boxes, positive_iou=POSITIVE_IOU, negative_iou=NEGATIVE_IOU, min_iou=MIN_IOU)
            positive, negative = sample(assigned, count=self.batch, positive_fraction=POSITIVE_FRACTION)
            # Masks over all anchors instead of lists of the sampled ones: their lengths would have to reach the host.
            entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
            loss_cls.append(torch.where(positive | negative, entropy, 0).sum())
            # The row padded at the end stands for "no object", so that an image without objects needs no other path.
            matched = torch.where(positive[:, None], F.pad(boxes, (0, 0, 0, 1))[assigned], anchors)
            distance = (deltas - encode(anchors, matched, stds=STDS)).abs()
            loss_bbox.append(torch.where(positive[:, None], distance, 0).sum())
            # As released: an image without positives (or negatives) counts as if it had one.
            total += positive.sum().clamp(min=1) + negative.sum().clamp(min=1)
        return {"loss_rpn_cls": sum(loss_cls) / total, "loss_rpn_bbox": sum(loss_bbox) / total}

    @torch.no_grad()
    def propose(
        self, outputs: RPNOutputs, image_sizes: list[tuple[int, int]], *, pre_nms: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image the boxes (n, 4) most likely to hold an object, and their scores (n,), best first.

        image_sizes: valid (h, w) of each image; boxes are clipped to it.
        pre_nms: how many of a level's anchors take part, by score.
        """
        scores, boxes, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*outputs, strict=True)):
            # Not topk: saturated scores are equal, and the first of them must win, as in the released code.
            level_scores, index = logits.sigmoid().sort(dim=1, descending=True, stable=True)
            level_scores, index = level_scores[:, :pre_nms], index[:, :pre_nms]
            deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            scores.append(level_scores)
            boxes.append(decode(anchors[index], deltas, stds=STDS))
            levels.append(torch.full_like(index[0], level))
        return [
            self._select(clip_boxes_to_image(image_boxes, size), image_scores, torch.cat(levels))
            for image_boxes, image_scores, size in zip(
                torch.cat(boxes, dim=1), torch.cat(scores, dim=1), image_sizes, strict=True
            )
        ]

    def _select(self, boxes: Tensor, scores: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        nonempty = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
        boxes, scores, levels = boxes[nonempty], scores[nonempty], levels[nonempty]
        keep = grouped_nms(boxes, scores, levels, threshold=self.nms, limit=self.proposals)
        return boxes[keep], scores[keep]
