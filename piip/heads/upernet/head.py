"""UperNet (Xiao et al., 2018) as the released PIIP networks have it: mmsegmentation 0.27's settings and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Head
from piip.heads.windows import most_likely, slide

NO_LABEL = 255

_resize = partial(F.interpolate, mode="bilinear", align_corners=False)


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class PixelClassifier(nn.Sequential):
    """Dropout of whole channels and a linear classifier of every cell."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float) -> None:
        conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__(nn.Dropout2d(dropout), conv)


class PyramidPooling(nn.Module):
    """A map beside its means over coarse grids (Zhao et al., 2017, "Pyramid Scene Parsing Network").

    scales: cells a side of each grid.
    """

    def __init__(self, in_channels: int, out_channels: int, *, scales: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), ConvNorm(in_channels, out_channels, 1)) for cells in scales
        )
        self.fuse = ConvNorm(in_channels + len(scales) * out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W)."""
        pooled = [_resize(stage(x), size=x.shape[2:]) for stage in self.stages]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class UperNet(Head):
    """A class for every pixel: pyramid pooling on the coarsest map, a feature pyramid, all levels fused on the finest.

    specs: the maps, finest first. The other settings are those of `UperNetConfig`.
    Batch norm sees the images of one process, or of all where it was converted to `nn.SyncBatchNorm`.
    Raises ConfigError if there is no map of `auxiliary_level`.
    """

    task = "segmentation"
    needs = frozenset({"label_map"})
    several_views = True

    def __init__(
        self,
        *,
        specs: Sequence[FeatureSpec],
        num_classes: int = 150,
        channels: int = 1536,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary_level: int | None = 2,
        auxiliary_weight: float = 0.4,
        window: int | None = 512,
        stride: int = 341,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
    ) -> None:
        super().__init__()
        if auxiliary_level is not None and auxiliary_level >= len(specs):
            raise ConfigError(
                f"model.head.auxiliary_level: there are maps 0 to {len(specs) - 1}, got {auxiliary_level}"
            )
        self.specs = list(specs)
        self.num_classes, self.pool_scales = num_classes, tuple(pool_scales)
        self.auxiliary_level, self.auxiliary_weight = auxiliary_level, auxiliary_weight
        self.window, self.stride = window, stride
        self.test_scales, self.test_flip = tuple(test_scales), test_flip
        self.pooling = PyramidPooling(specs[-1].channels, channels, scales=pool_scales)
        self.lateral = nn.ModuleList(ConvNorm(spec.channels, channels, 1) for spec in specs[:-1])
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in specs[:-1])
        self.fuse = ConvNorm(len(specs) * channels, channels, 3)
        self.classifier = PixelClassifier(channels, num_classes, dropout=dropout)
        self.auxiliary: nn.Sequential | None = None
        if auxiliary_level is not None:
            self.auxiliary = nn.Sequential(
                ConvNorm(specs[auxiliary_level].channels, channels, 3),
                PixelClassifier(channels, num_classes, dropout=dropout),
            )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C, H/s, W/s), finest first -> logits (B, classes, h, w) of the finest map's size."""
        maps = [conv(x) for conv, x in zip(self.lateral, features[:-1], strict=True)]
        maps.append(self.pooling(features[-1]))
        for fine in range(len(maps) - 2, -1, -1):
            maps[fine] = maps[fine] + _resize(maps[fine + 1], size=maps[fine].shape[2:])
        maps[:-1] = [conv(x) for conv, x in zip(self.output, maps[:-1], strict=True)]
        size = maps[0].shape[2:]
        fused = self.fuse(torch.cat([maps[0], *(_resize(x, size=size) for x in maps[1:])], dim=1))
        return self.classifier(fused)

    def class_layers(self) -> dict[nn.Module, int]:
        """The classifiers of cells, the auxiliary one too."""
        return {part[1]: 1 for part in self.modules() if isinstance(part, PixelClassifier)}

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Cross-entropy `loss_seg`, and `loss_auxiliary` times its weight: float32 scalars.

        features: maps (B, C, H/s, W/s), finest first; targets: per image `label_map` (h, w) at its valid size, 255 for
        no label. As released, the mean is over all pixels of the batch, also those without a label, whose loss is 0.
        Raises ConfigError for a single image in a process, whose mean over all cells batch norm cannot norm.
        """
        alone = self.training and len(targets) == 1 and any(isinstance(x, nn.BatchNorm2d) for x in self.modules())
        if alone and 1 in self.pool_scales:
            raise ConfigError(
                "UperNet's batch norm needs two images a process and step: raise data.batch_size, or lower "
                "optim.accumulate or the number of processes"
            )
        height, width = (cells * self.specs[0].stride for cells in features[0].shape[2:])
        labels = torch.stack([_padded(target["label_map"], height, width) for target in targets]).long()
        losses = {"loss_seg": _cross_entropy(self(features), labels)}
        if self.auxiliary is not None and self.auxiliary_level is not None:
            logits = self.auxiliary(features[self.auxiliary_level])
            losses["loss_auxiliary"] = self.auxiliary_weight * _cross_entropy(logits, labels)
        return losses

    def view(
        self,
        detect: Callable[[Tensor, list[tuple[int, int]]], Tensor],
        images: Tensor,
        image_sizes: list[tuple[int, int]],
    ) -> Tensor:
        """Logits (B, classes, H, W) of images (B, 3, H, W) by `window`, and by `test_scales` and `test_flip`.

        Several views are averaged as probabilities, whose logarithm is returned.
        """

        def look(part: Tensor) -> Tensor:
            return _resize(detect(part, [(part.shape[2], part.shape[3])] * len(part)), size=part.shape[2:])

        def whole(part: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
            return (
                look(part) if self.window is None else slide(look, part, sizes, window=self.window, stride=self.stride)
            )

        views = list(product(self.test_scales, (False, True) if self.test_flip else (False,)))
        if views == [(1.0, False)]:
            return whole(images, image_sizes)
        total: Tensor | None = None
        for scale, mirrored in views:
            part, sizes = _scaled(images, image_sizes, scale, divisor=self.specs[-1].stride)
            logits = whole(_mirrored(part, sizes) if mirrored else part, sizes)
            logits = _mirrored(logits, sizes) if mirrored else logits
            probabilities = _resize(logits, size=images.shape[2:]).softmax(1)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return (total / len(views)).clamp(min=torch.finfo(total.dtype).tiny).log()

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Logits (B, classes, h, w) of the finest map's size, float32."""
        return self(features).float()

    def in_batch(self, outputs: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
        """Logits (B, classes, H, W) in batch pixels."""
        return outputs

    def restore(
        self, outputs: Tensor, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The most likely label of every original pixel.

        Returns per image labels (H, W), uint8 or int64 for more than 256 classes, and scores (H, W), their
        probabilities, float32.
        """
        results = []
        for logits, (height, width), original in zip(outputs, image_sizes, original_sizes, strict=True):
            labels, scores = most_likely(logits[:, :height, :width], original)
            results.append({"labels": labels.byte() if self.num_classes <= 256 else labels, "scores": scores})
        return results


def _padded(label_map: Tensor, height: int, width: int) -> Tensor:
    return F.pad(label_map, (0, width - label_map.shape[1], 0, height - label_map.shape[0]), value=NO_LABEL)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = _resize(logits.float(), size=labels.shape[1:])
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / labels.numel()


def _scaled(
    images: Tensor, sizes: list[tuple[int, int]], scale: float, *, divisor: int
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images and their valid sizes times about `scale`, the batch a multiple of `divisor` again."""
    if scale == 1:
        return images, sizes
    height, width = (max(divisor, round(side * scale / divisor) * divisor) for side in images.shape[2:])
    ratios = height / images.shape[2], width / images.shape[3]
    scaled = [(max(1, round(h * ratios[0])), max(1, round(w * ratios[1]))) for h, w in sizes]
    return _resize(images, size=(height, width)), scaled


def _mirrored(x: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """The valid parts (h, w) of x (B, C, H, W) flipped left to right, each in its place."""
    x = x.clone()
    for image, (height, width) in zip(x, sizes, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return x
