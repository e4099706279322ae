"""Non-maximum suppression with results of a fixed size, for programs that are exported.

torchvision's nms, which has to be imported and does the work, returns as many boxes as it keeps, on which no exported
program can rely. `piip::nms` fills up, and is one NonMaxSuppression and some arithmetic in ONNX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from piip.ops._registration import register_op


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Which boxes of an image no better one overlaps too much: at most the `limit` best of them.

    boxes: (B, N, 4) xyxy; scores: (B, N) float32, those below 0 take no part. threshold: largest IoU two kept boxes may
    have. Returns indices (B, min(limit, N)) int64 by descending score, equal scores in their order, filled up with 0,
    and how many of them count (B,) int64.
    """
    return _NMS(boxes, scores, threshold, min(limit, scores.shape[1]))


def _forward(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    index = torch.zeros(len(scores), limit, dtype=torch.int64, device=scores.device)
    counts = []
    for image, (image_boxes, image_scores) in enumerate(zip(boxes, scores)):
        rows = (image_scores >= 0).nonzero()[:, 0]
        rows = rows[image_scores[rows].argsort(descending=True, stable=True)]
        kept = rows[torch.ops.torchvision.nms(image_boxes[rows], image_scores[rows], threshold)[:limit]]
        index[image, : len(kept)] = kept
        counts.append(len(kept))
    return index, torch.tensor(counts, device=scores.device)


def _fake(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    batch = scores.shape[0]
    return scores.new_empty(batch, limit, dtype=torch.int64), scores.new_empty(batch, dtype=torch.int64)


def _flops(*_: Any, **__: Any) -> int:
    return 0


_NMS = register_op(
    "nms(Tensor boxes, Tensor scores, float threshold, int limit) -> (Tensor, Tensor)", _forward, _fake, _flops
)
