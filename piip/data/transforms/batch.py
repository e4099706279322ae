"""From samples of any size to one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from piip.data.transforms.config import TransformsConfig
from piip.errors import DataError


def pad(images: Sequence[Tensor], divisor: int) -> Tensor:
    """One batch (B, 3, H, W) of images (3, h, w), zero-padded at the bottom and right; (0, 3, 0, 0) of none.

    H and W are the largest h and w rounded up to a multiple of `divisor`.
    """
    if not images:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    height, width = (-(-max(image.shape[dim] for image in images) // divisor) * divisor for dim in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for image, place in zip(images, batch, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def normalise_and_pad(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], divisor: int) -> Tensor:
    """The same in float32, normalised before it is padded. mean and std are RGB in 0..255."""
    offset, gain = (torch.tensor(values, device=images[0].device)[:, None, None] for values in (mean, std))
    return pad([(image - offset).div_(gain) for image in images], divisor)


def prepare(images: Sequence[Tensor], transforms: TransformsConfig) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images as the network takes them in evaluation, but not normalised yet: resized and padded.

    images: uint8 RGB (3, H, W), of any sizes.
    Returns the uint8 batch (B, 3, H', W') as `pad` makes it, and every image's valid (h, w) in it. Raises DataError for
    other dtypes and shapes.
    """
    if not images:
        raise DataError("no images were given")
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
            raise DataError(f"images must be non-empty uint8 RGB tensors of shape (3, H, W), got {kind}")
    resized = [transforms.apply({"image": image}, None)["image"] for image in images]
    return pad(resized, transforms.pad_divisor), [(image.shape[1], image.shape[2]) for image in resized]
