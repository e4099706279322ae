"""What dense heads share: the views of an image that the network is run on, and labels of the original pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.features import FeatureSpec
from piip.heads.base import Exported, Head, Sizes, Views
from piip.heads.config import SegmentationHeadConfig
from piip.heads.tiles import SegmentationTiles
from piip.heads.windows import Windows, most_likely

resize = partial(F.interpolate, mode="bilinear", align_corners=False)


class SegmentationHead(Head):
    """A head that classifies every pixel; its `detect` returns logits (B, classes, h, w), float32, of any size.

    This class makes the views of an image, by the windows, scales and flip of the config, and labels from their logits.
    specs: the maps, finest first.
    """

    several_views = True

    def __init__(self, config: SegmentationHeadConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.config, self.specs = config, list(specs)

    def views(self, images: Tensor, image_sizes: Sizes) -> SegmentationViews:
        return SegmentationViews(images, image_sizes, self.config, divisor=self.specs[-1].stride)

    def export(self, features: list[Tensor], size: tuple[int, int], *, final: bool) -> Exported:
        """logits (B, classes, h, w) of the whole image, without windows and further views.

        Finally labels (h, w), uint8 or int64 for more than 256 classes, and scores (h, w), their probabilities.
        """
        logits = resize(self.detect(features, [size]), size=size)
        if not final:
            return Exported({"logits": logits}, rows=False)
        scores, labels = logits[0].softmax(0).max(0)
        return Exported({"labels": labels.byte() if logits.shape[1] <= 256 else labels, "scores": scores}, rows=False)

    def merge_tiles(self, size: tuple[int, int]) -> SegmentationTiles:
        return SegmentationTiles(size)

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


class SegmentationViews(Views):
    """Images at several scales, also mirrored, each as a whole or in windows; only the sum of all views is kept.

    divisor: the sides of scaled batches are multiples of it.
    """

    def __init__(self, images: Tensor, image_sizes: Sizes, config: SegmentationHeadConfig, *, divisor: int) -> None:
        super().__init__(images, image_sizes)
        self._config, self._divisor = config, divisor
        self._views = list(product(config.test_scales, (False, True) if config.test_flip else (False,)))
        self._single = self._views == [(1.0, False)]
        self._total: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Sizes]]:
        for scale, mirrored in self._views:
            images, sizes = _scaled(self.images, self.image_sizes, scale, divisor=self._divisor)
            if mirrored:
                images = _mirrored(images, sizes)
            if self._config.window is None:
                yield images, _whole(images)
                logits = resize(self._added, size=images.shape[2:])
            else:
                windows = Windows(images, sizes, window=self._config.window, stride=self._config.stride)
                for seen in windows:
                    yield seen, _whole(seen)
                    windows.add(resize(self._added, size=seen.shape[2:]))
                logits = windows.mean()
            if self._single:
                self._total = logits
                continue
            if mirrored:
                logits = _mirrored(logits, sizes)
            probabilities = resize(logits, size=self.images.shape[2:]).softmax(1)
            self._total = probabilities if self._total is None else self._total.add_(probabilities)

    def outputs(self) -> Tensor:
        """Logits (B, classes, H, W); those of several views are the logarithm of their mean probabilities."""
        assert self._total is not None  # there is a view
        if self._single:
            return self._total
        return (self._total / len(self._views)).clamp(min=torch.finfo(self._total.dtype).tiny).log()


def _whole(images: Tensor) -> Sizes:
    """The sizes of images (B, 3, H, W), padding included."""
    return [(images.shape[2], images.shape[3])] * len(images)


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
