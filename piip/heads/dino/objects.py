"""The objects of a batch as DINO learns them: relative boxes, padded to the image with the most of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert


class Objects(NamedTuple):
    """The objects of B images, padded to N per image.

    boxes: (B, N, 4) xywh, centre first, in [0, 1] of the image. labels: (B, N). valid: (B, N) bool, False in the
    padding, which follows an image's objects. pixels: (B, 1, 4), the factors from relative boxes to pixels.
    counts: the number of objects of each image, known to the host.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    pixels: Tensor
    counts: list[int]

    def repeat(self, times: int) -> Objects:
        """The same objects `times` times: N * times per image, all of one repetition before the next."""
        boxes, labels, valid = self.boxes.repeat(1, times, 1), self.labels.repeat(1, times), self.valid.repeat(1, times)
        return Objects(boxes, labels, valid, self.pixels, [count * times for count in self.counts])


def gather_objects(targets: Sequence[dict[str, Tensor]], image_sizes: Sequence[tuple[int, int]]) -> Objects:
    """targets: per image boxes (n, 4) xyxy in pixels and labels (n,); image_sizes: valid (h, w)."""
    counts = [len(target["labels"]) for target in targets]
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    device = boxes.device
    pixels = torch.tensor([[(w, h, w, h)] for h, w in image_sizes], dtype=torch.float32).to(device, non_blocking=True)
    number = torch.tensor(counts).to(device, non_blocking=True)
    valid = torch.arange(max(counts), device=device) < number[:, None]
    return Objects(box_convert(boxes, "xyxy", "cxcywh") / pixels, labels, valid, pixels, counts)
