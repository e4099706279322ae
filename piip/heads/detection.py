"""What heads that find objects share: boxes on their way from the batch to the original images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image


def restore_boxes(
    outputs: list[dict[str, Tensor]], image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """Per image `boxes` (n, 4) xyxy in pixels of its original (h, w), `scores` (n,) and `labels` (n,).

    outputs: per image the same in batch pixels, with boxes within its valid (h, w); other entries are left out.
    """
    results = []
    for image, size, original in zip(outputs, image_sizes, original_sizes, strict=True):
        scale = torch.tensor([size[1] / original[1], size[0] / original[0]] * 2)
        boxes = image["boxes"] / scale.to(image["boxes"].device, non_blocking=True)
        boxes = clip_boxes_to_image(boxes, original)
        results.append({"boxes": boxes, "scores": image["scores"], "labels": image["labels"]})
    return results
