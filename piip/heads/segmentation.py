"""What dense heads share: the views of an image that the network is run on, and labels of the original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.features import FeatureSpec
from piip.heads.base import Head, Look, Sizes
from piip.heads.config import SegmentationHeadConfig
from piip.heads.windows import most_likely, slide

resize = partial(F.interpolate, mode="bilinear", align_corners=False)


class SegmentationHead(Head):
    """A head that classifies every pixel; its `detect` returns logits (B, classes, h, w), float32, of any size.

    This class looks at images in the windows, scales and flip of the config, and makes labels from the logits.
    specs: the maps, finest first.
    """

    several_views = True

    def __init__(self, config: SegmentationHeadConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.config, self.specs = config, list(specs)

    def look_at(self, images: Tensor, image_sizes: Sizes, look: Look) -> Tensor:
        """Logits (B, classes, H, W); those of several views are the logarithm of their mean probabilities.

        The views are the images at several scales, also mirrored; only the sum of them all is kept.
        """
        views = list(product(self.config.test_scales, (False, True) if self.config.test_flip else (False,)))
        total: Tensor | None = None
        for scale, mirrored in views:
            seen, sizes = _scaled(images, image_sizes, scale, divisor=self.specs[-1].stride)
            logits = self._look_at_one(_mirrored(seen, sizes) if mirrored else seen, sizes, look)
            if views == [(1.0, False)]:
                return logits
            if mirrored:
                logits = _mirrored(logits, sizes)
            probabilities = resize(logits, size=images.shape[2:]).softmax(1)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None  # there is a view
        return (total / len(views)).clamp(min=torch.finfo(total.dtype).tiny).log()

    def _look_at_one(self, images: Tensor, image_sizes: Sizes, look: Look) -> Tensor:
        """Logits (B, classes, H, W) of a view, seen as a whole or in windows."""

        def seen_whole(x: Tensor) -> Tensor:
            logits = look(x, [(x.shape[2], x.shape[3])] * len(x))  # padding included
            return resize(logits, size=x.shape[2:])

        if self.config.window is None:
            return seen_whole(images)
        return slide(seen_whole, images, image_sizes, window=self.config.window, stride=self.config.stride)

    def in_batch(self, outputs: Tensor, image_sizes: Sizes) -> Tensor:
        """Logits (B, classes, H, W) in batch pixels."""
        return outputs

    def restore(self, outputs: Tensor, image_sizes: Sizes, original_sizes: Sizes) -> list[dict[str, Tensor]]:
        """The most likely label of every original pixel, from the logits (B, classes, H, W) of all views.

        Returns per image labels (H, W), uint8 or int64 for more than 256 classes, and scores (H, W), their
        probabilities, float32.
        """
        results = []
        for logits, (height, width), original in zip(outputs, image_sizes, original_sizes, strict=True):
            labels, scores = most_likely(logits[:, :height, :width], original)
            results.append({"labels": labels.byte() if len(logits) <= 256 else labels, "scores": scores})
        return results


def _scaled(images: Tensor, sizes: Sizes, scale: float, *, divisor: int) -> tuple[Tensor, Sizes]:
    """Images and their valid sizes times about `scale`, the batch a multiple of `divisor` again."""
    if scale == 1:
        return images, sizes
    height, width = (max(divisor, round(side * scale / divisor) * divisor) for side in images.shape[2:])
    ratios = height / images.shape[2], width / images.shape[3]
    scaled = [(max(1, round(h * ratios[0])), max(1, round(w * ratios[1]))) for h, w in sizes]
    return resize(images, size=(height, width)), scaled


def _mirrored(x: Tensor, sizes: Sizes) -> Tensor:
    """The valid parts (h, w) of x (B, C, H, W) flipped left to right, each in its place."""
    x = x.clone()
    for image, (height, width) in zip(x, sizes, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return x
