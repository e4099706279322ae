"""Logits of whole images: from windows that slide over them, and on their way to the original pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from piip import host
from piip.heads.base import Sizes
from piip.tiling import starts

# Probabilities computed at once on the way to original pixels; 150 classes of a large photo would be gigabytes. A
# device needs more of them at once, or it waits for the host.
MAX_PROBABILITIES = 2**22
MAX_PROBABILITIES_ON_DEVICE = 2**26
# Pixels of all windows that a device gets together: 16 windows of 512 x 512.
MAX_WINDOW_PIXELS = 2**22


class Windows:
    """Windows that slide over images, and the mean of their logits.

    Iteration gives some windows at a time (b, 3, h, w): one to B, or MAX_WINDOW_PIXELS on a device where those are
    more. Their logits (b, classes, h, w) go to `add` before the next ones are asked for. Windows are laid out as in
    mmsegmentation: from the top left in steps of `stride`, the last of a row or column moved back into the image. An
    image smaller than a window is taken with its padding, so that one window over the whole batch is the batch.

    images: (B, 3, H, W); image_sizes: valid (h, w) of each. window, stride: in pixels.
    """

    def __init__(self, images: Tensor, image_sizes: Sizes, *, window: int, stride: int) -> None:
        self._images = images
        self._height, self._width = (min(window, side) for side in images.shape[2:])
        self._places = [
            (index, slice(y, y + self._height), slice(x, x + self._width))
            for index, (valid_height, valid_width) in enumerate(image_sizes)
            for y in starts(valid_height, self._height, stride)
            for x in starts(valid_width, self._width, stride)
        ]
        self._given: list[tuple[int, slice, slice]] = []
        self._total: Tensor | None = None
        self._count = images.new_zeros((len(images), 1, *images.shape[2:]), dtype=torch.float32)

    def __iter__(self) -> Iterator[Tensor]:
        together = len(self._images)
        if not host.is_host(self._images.device):
            together = max(together, MAX_WINDOW_PIXELS // (self._height * self._width))
        for first in range(0, len(self._places), together):
            self._given = self._places[first : first + together]
            yield torch.stack([self._images[index, :, rows, columns] for index, rows, columns in self._given])

    def add(self, logits: Tensor) -> None:
        """Takes the logits (b, classes, h, w) of the windows that were given last."""
        if self._total is None:
            shape = (len(self._images), logits.shape[1], *self._images.shape[2:])
            self._total = logits.new_zeros(shape)
        for (index, rows, columns), part in zip(self._given, logits, strict=True):
            self._total[index, :, rows, columns] += part
            self._count[index, :, rows, columns] += 1

    def mean(self) -> Tensor:
        """Mean logits (B, classes, H, W) of all windows that cover a pixel; zeros outside the valid parts."""
        assert self._total is not None  # every image has a window
        return self._total.div_(self._count.clamp_(min=1))


def most_likely(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of logits (classes, h, w) resized to `size` (H, W): labels (H, W) int64, and their probabilities (H, W) float32.

    Resized bilinearly without aligned corners. It goes over the image in strips of one row or more, which hold at most
    as many probabilities as suit the device.
    """
    most = MAX_PROBABILITIES if host.is_host(logits.device) else MAX_PROBABILITIES_ON_DEVICE
    rows = max(1, most // (len(logits) * size[1]))
    # Sampling rows by hand lets a strip be resized by itself; it is what interpolate does, see its align_corners.
    source = (torch.arange(size[0], device=logits.device) + 0.5) * (logits.shape[1] / size[0]) - 0.5
    source = source.clamp(min=0)
    upper = source.long().clamp(max=logits.shape[1] - 1)
    lower = (upper + 1).clamp(max=logits.shape[1] - 1)
    weight = (source - upper)[None, :, None]
    labels, scores = [], []
    for start in range(0, size[0], rows):
        strip = slice(start, start + rows)
        x = torch.lerp(logits[:, upper[strip]], logits[:, lower[strip]], weight[:, strip])
        x = F.interpolate(x[None], size=(x.shape[1], size[1]), mode="bilinear", align_corners=False)[0]
        score, label = x.softmax(0).max(0)
        labels.append(label)
        scores.append(score)
    return torch.cat(labels), torch.cat(scores)
