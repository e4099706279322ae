"""Region proposal network (Ren et al., 2015, "Faster R-CNN") on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from piip.features import FeatureSpec
from piip.heads.base import Sizes
from piip.heads.mask_rcnn.boxes import clip, decode, encode, level_anchors, take_rows
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.sampling import assign, drawn_first, sample
from piip.heads.mask_rcnn.suppression import best, suppress

POSITIVE_IOU, NEGATIVE_IOU, MIN_IOU = 0.7, 0.3, 0.3
POSITIVE_FRACTION = 0.5
STDS = (1.0, 1.0, 1.0, 1.0)


class RPNOutputs(NamedTuple):
    """Per level, in float32: logits (B, N) and deltas (B, N, 4) of its N = H * W * A anchors (N, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class Proposals(NamedTuple):
    """Of every image the boxes (B, P, 4) most likely to hold an object and their scores (B, P), best first.

    counts: (B,), how many there are; behind them, boxes and scores are 0.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor


class RPN(nn.Module):
    """Predicts for every anchor whether it lies on an object, and how to move it there.

    specs: the pyramid, one width for all levels.
    """

    def __init__(self, config: MaskRCNNConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        channels, num_anchors = specs[0].channels, len(config.anchor_ratios)
        self.config, self.strides = config, [spec.stride for spec in specs]
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
            outputs.deltas.append(self.reg(hidden).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).float())
            grid = (x.shape[2], x.shape[3])
            outputs.anchors.append(level_anchors(x, grid, stride, self.config.anchor_scale, self.config.anchor_ratios))
        return outputs

    def loss(self, outputs: RPNOutputs, objects: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and L1 loss against the objects (n, 4) of every image, each a mean over the sampled anchors."""
        anchors = torch.cat(outputs.anchors)
        # A row more than the most objects stands for "no object", so that images without objects need no other path.
        padded = F.pad(pad_sequence(objects, batch_first=True), (0, 0, 0, 1))
        assigned = assign(
            anchors.expand(len(padded), -1, -1),
            padded,
            positive_iou=POSITIVE_IOU,
            negative_iou=NEGATIVE_IOU,
            min_iou=MIN_IOU,
        )
        masks = sample(assigned, num_samples=self.config.rpn_batch, positive_fraction=POSITIVE_FRACTION)
        # As many anchors per image, whatever was drawn: a number that had to reach the host would be waited for.
        drawn = drawn_first(*masks, self.config.rpn_batch)
        positive, negative = (mask.gather(1, drawn) for mask in masks)
        logits, deltas = (torch.cat(levels, dim=1) for levels in (outputs.logits, outputs.deltas))
        entropy = F.binary_cross_entropy_with_logits(logits.gather(1, drawn), positive.float(), reduction="none")
        matched = take_rows(padded, assigned.gather(1, drawn).clamp(min=0))
        matched = torch.where(positive[..., None], matched, anchors[drawn])
        distance = (take_rows(deltas, drawn) - encode(anchors[drawn], matched, stds=STDS)).abs()
        # As released: an image without positives (or negatives) counts as if it had one.
        total = torch.stack(masks).sum(dim=2).clamp(min=1).sum()
        return {
            "loss_rpn_cls": torch.where(positive | negative, entropy, 0).sum() / total,
            "loss_rpn_bbox": torch.where(positive[..., None], distance, 0).sum() / total,
        }

    def propose(self, outputs: RPNOutputs, image_sizes: Sizes, *, pre_nms: int) -> list[tuple[Tensor, Tensor]]:
        """Per image the boxes (n, 4) of `propose_padded` and their scores (n,); waits for their numbers once more."""
        padded = self.propose_padded(outputs, image_sizes, pre_nms=pre_nms)
        counts = padded.counts.tolist()
        return [(boxes[:n], scores[:n]) for boxes, scores, n in zip(padded.boxes, padded.scores, counts, strict=True)]

    @torch.no_grad()
    def propose_padded(self, outputs: RPNOutputs, image_sizes: Sizes, *, pre_nms: int) -> Proposals:
        """The boxes that most likely hold an object. It waits for the device once for every four images.

        image_sizes: valid (h, w) of each image; boxes are clipped to it.
        pre_nms: how many of a level's anchors take part, by score.
        """
        scores, boxes, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*outputs, strict=True)):
            # By probability, for saturated ones are equal, and the first of them must win, as in the released code.
            level_scores, index = best(logits.sigmoid(), min(pre_nms, logits.shape[1]))
            scores.append(level_scores)
            boxes.append(decode(anchors[index], take_rows(deltas, index), stds=STDS))
            levels.append(torch.full_like(index[0], level))
        candidates, by_score = clip(torch.cat(boxes, dim=1), image_sizes), torch.cat(scores, dim=1)
        index, counts = suppress(
            candidates,
            by_score,
            torch.cat(levels),
            (candidates[..., 2:] > candidates[..., :2]).all(dim=-1),
            num_groups=len(levels),
            threshold=self.config.rpn_nms,
            limit=self.config.rpn_proposals,
        )
        real = torch.arange(index.shape[1], device=index.device) < counts[:, None]
        return Proposals(
            torch.where(real[..., None], take_rows(candidates, index), 0),
            torch.where(real, by_score.gather(1, index), 0),
            counts,
        )
