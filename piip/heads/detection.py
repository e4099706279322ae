"""What detectors share: boxes on their way from the batch to the original images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from piip.heads.base import Head, Sizes


class DetectionHead(Head):
    """A head whose `detect` returns per image `boxes` (n, 4) xyxy within its valid size, `scores` and `labels` (n,)."""

    def restore(self, outputs: list[dict[str, Tensor]], image_sizes: Sizes, original_sizes: Sizes) -> list[Any]:
        """Per image a dict with boxes (n, 4) in its original pixels, scores (n,) and labels (n,)."""
        results = []
        for image, size, original in zip(outputs, image_sizes, original_sizes, strict=True):
            scale = torch.tensor([size[1] / original[1], size[0] / original[0]] * 2)
            boxes = image["boxes"] / scale.to(image["boxes"].device, non_blocking=True)
            boxes = clip_boxes_to_image(boxes, original)
            results.append({"boxes": boxes, "scores": image["scores"], "labels": image["labels"]})
        return results
