"""Changes of whole batches of labelled training images: random erasing, Mixup, CutMix, label smoothing."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from piip.data.transforms.classification.config import ClassificationTransforms
from piip.data.transforms.sample import drawing_from, generator
from piip.errors import ConfigError

MIX_STREAM = 2


class Mixing:
    """Erases in, and mixes, the normalised images of a batch as timm does, each batch from its own random stream.

    Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019), by equal chance where both are on, with one factor for the
    whole batch: the first image is mixed with the last, the second with the last but one. An erased rectangle is filled
    with normal noise (Zhong et al., 2020).
    batch_size: images of every batch. Raises ConfigError when it is odd and images are to be mixed.
    """

    def __init__(self, config: ClassificationTransforms, *, num_classes: int, batch_size: int, seed: int) -> None:
        self._num_classes, self._smoothing, self._seed = num_classes, config.label_smoothing, seed
        self._erase = RandomErasing(config.erase, mode="pixel", device="cpu") if config.erase else None
        self._mixup: Mixup | None = None
        if config.mixup or config.cutmix:
            if batch_size % 2:
                raise ConfigError(
                    f"Mixup and CutMix mix images in pairs, but a process has {batch_size} in a batch; choose "
                    "data.batch_size so that this is even, or set mixup and cutmix in data.train_transforms to 0"
                )
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    @property
    def changes_pixels(self) -> bool:
        return self._erase is not None or self._mixup is not None

    def __call__(
        self, images: Tensor, targets: list[dict[str, Tensor]], key: tuple[int, int]
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """images: (B, 3, H, W), normalised and float if they are changed (in place); targets: with label.

        Returns the images, and targets with probabilities (classes,) float32 instead of a label that is mixed
        or smoothed.
        """
        # Targets are views of one tensor: each piece of memory that is sent between processes takes a file descriptor.
        labels = torch.stack([target["label"] for target in targets])
        with drawing_from(generator(self._seed, MIX_STREAM, *key)):
            if self._erase is not None:
                images = self._erase(images)
            if self._mixup is not None:
                images, probabilities = self._mixup(images, labels)
            elif self._smoothing:
                probabilities = mixup_target(labels, self._num_classes, smoothing=self._smoothing)
            else:
                return images, [{"label": label} for label in labels]
        return images, [{"probabilities": row} for row in probabilities]
