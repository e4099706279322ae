"""UperNet (Xiao et al., 2018) as the released PIIP networks have it: mmsegmentation 0.27's settings and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.conventions import NO_LABEL
from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Sizes
from piip.heads.segmentation import SegmentationHead, resize
from piip.heads.upernet.config import UperNetConfig


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

    scales: cells per side of each grid.
    """

    def __init__(self, in_channels: int, out_channels: int, *, scales: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), ConvNorm(in_channels, out_channels, 1)) for cells in scales
        )
        self.fuse = ConvNorm(in_channels + len(scales) * out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W)."""
        pooled = [resize(stage(x), size=x.shape[2:]) for stage in self.stages]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class UperNet(SegmentationHead):
    """A class for every pixel: pyramid pooling on the coarsest map, a feature pyramid, all levels fused on the finest.

    specs: the maps, finest first.
    Batch norm sees the images of one process, or of all where it was converted to `nn.SyncBatchNorm`.
    Raises ConfigError if there is no map of `auxiliary_level`.
    """

    config: UperNetConfig

    def __init__(self, config: UperNetConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__(config, specs)
        channels, level = config.channels, config.auxiliary_level
        if level is not None and level >= len(specs):
            raise ConfigError(f"model.head.auxiliary_level: there are maps 0 to {len(specs) - 1}, got {level}")
        self.pooling = PyramidPooling(specs[-1].channels, channels, scales=config.pool_scales)
        self.lateral = nn.ModuleList(ConvNorm(spec.channels, channels, 1) for spec in specs[:-1])
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in specs[:-1])
        self.fuse = ConvNorm(len(specs) * channels, channels, 3)
        self.classifier = PixelClassifier(channels, config.num_classes, dropout=config.dropout)
        self.auxiliary: nn.Sequential | None = None
        if level is not None:
            self.auxiliary = nn.Sequential(
                ConvNorm(specs[level].channels, channels, 3),
                PixelClassifier(channels, config.num_classes, dropout=config.dropout),
            )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C, H/s, W/s), finest first -> logits (B, classes, h, w) of the finest map's size."""
        maps = [conv(x) for conv, x in zip(self.lateral, features[:-1], strict=True)]
        maps.append(self.pooling(features[-1]))
        for fine in range(len(maps) - 2, -1, -1):
            maps[fine] = maps[fine] + resize(maps[fine + 1], size=maps[fine].shape[2:])
        maps[:-1] = [conv(x) for conv, x in zip(self.output, maps[:-1], strict=True)]
        size = maps[0].shape[2:]
        fused = self.fuse(torch.cat([maps[0], *(resize(x, size=size) for x in maps[1:])], dim=1))
        return self.classifier(fused)

    def class_layers(self) -> dict[nn.Module, int]:
        """The classifiers of cells, the auxiliary one too."""
        return {part[1]: 1 for part in self.modules() if isinstance(part, PixelClassifier)}

    def loss(self, features: list[Tensor], image_sizes: Sizes, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Cross-entropy `loss_seg`, and `loss_auxiliary` times its weight: float32 scalars.

        features: maps (B, C, H/s, W/s), finest first; targets: per image `label_map` (h, w) at its valid size, 255 for
        no label. As released, the mean is over all pixels of the batch, also those without a label, whose loss is 0.
        Raises ConfigError for a single image in a process, whose mean over all cells batch norm cannot norm.
        """
        alone = self.training and len(targets) == 1 and any(isinstance(x, nn.BatchNorm2d) for x in self.modules())
        if alone and 1 in self.config.pool_scales:
            raise ConfigError(
                "UperNet's batch norm needs two images per process and step: raise data.batch_size, or lower "
                "optim.accumulate or the number of processes"
            )
        height, width = (cells * self.specs[0].stride for cells in features[0].shape[2:])
        labels = torch.stack([_padded(target["label_map"], height, width) for target in targets]).long()
        losses = {"loss_seg": _cross_entropy(self(features), labels)}
        if self.auxiliary is not None and self.config.auxiliary_level is not None:
            logits = self.auxiliary(features[self.config.auxiliary_level])
            losses["loss_auxiliary"] = self.config.auxiliary_weight * _cross_entropy(logits, labels)
        return losses

    def detect(self, features: list[Tensor], image_sizes: Sizes) -> Tensor:
        """Logits (B, classes, h, w) of the finest map's size, float32."""
        return self(features).float()


def _padded(label_map: Tensor, height: int, width: int) -> Tensor:
    return F.pad(label_map, (0, width - label_map.shape[1], 0, height - label_map.shape[0]), value=NO_LABEL)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    logits = resize(logits.float(), size=labels.shape[1:])
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum") / labels.numel()
