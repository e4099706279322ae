"""What detectors share: boxes on their way from the batch to the original images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from piip.heads.base import Head, Sizes
from piip.heads.tiles import DetectionTiles


class DetectionHead(Head):
    """A head whose `detect` returns per image `boxes` (n, 4) xyxy within its valid size, `scores` and `labels` (n,)."""

    finds_objects = True

    def merge_tiles(self, size: tuple[int, int]) -> DetectionTiles:
        return DetectionTiles(self.restore, size)

    def select(
        self, outputs: list[dict[str, Tensor]], *, threshold: float, labels: list[int] | None
    ) -> list[dict[str, Tensor]]:
        """The objects with at least this score and, unless None, one of these labels."""
        selected = []
        for image in outputs:
            kept = image["scores"] >= threshold
            if labels is not None:
                kept &= torch.isin(image["labels"], torch.tensor(labels).to(kept.device))
            selected.append({name: value[kept] for name, value in image.items()})
        return selected

    def restore(self, outputs: list[dict[str, Tensor]], image_sizes: Sizes, original_sizes: Sizes) -> list[Any]:
        """Per image a dict with boxes (n, 4) in its original pixels, scores (n,) and labels (n,)."""
        results = []
        for image, size, original in zip(outputs, image_sizes, original_sizes, strict=True):
            scale = torch.tensor([size[1] / original[1], size[0] / original[0]] * 2)
            boxes = image["boxes"] / scale.to(image["boxes"].device, non_blocking=True)
            boxes = clip_boxes_to_image(boxes, original)
            results.append({"boxes": boxes, "scores": image["scores"], "labels": image["labels"]})
        return results
