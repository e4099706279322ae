"""Batches: what loader processes hand over, in as few bytes as possible, and what the network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from piip.conventions import ImageId
from piip.data.transforms.batch import normalise_and_pad, pad
from piip.data.transforms.sample import BatchMixing, Sample
from piip.errors import PiipError

# Tensors begin at multiples of so many bytes in the memory of their batch.
_ALIGNMENT = 64

# These spread the bits of a byte over the eight bytes of an int64. The product with the first holds bit 7 - k of the
# byte as the highest bit of byte k, counted from the lowest address; shifted down, the second picks it out.
_SPREAD = 0x8040201008040201 - 2**64
_LOWEST = 0x0101010101010101


class Unread(NamedTuple):
    """An image that cannot be read in evaluation. truth: as in `Batch.truths`. reason: the message of the error."""

    image_id: ImageId
    truth: dict[str, Any]
    reason: str


@dataclass
class Batch:
    """Images as the network takes them, and what belongs to them.

    images: (B, 3, H, W) uint8, zero-padded at the bottom and right, which the network normalises in the pass that makes
    its pyramid; float32 and normalised where the recipe mixes or erases normalised pixels. H and W are multiples of
    pad_divisor.
    image_sizes: valid (h, w) of each image in the batch. original_sizes: (h, w) of each image as read, upright.
    targets: one per image; empty in evaluation. For detection boxes (n, 4) float32 xyxy in batch pixels, labels (n,)
    int64, masks (n, h, w) uint8 at the image's valid size where the data has any, crowd_boxes (m, 4); for segmentation
    label_map (h, w) uint8 at the image's valid size, 255 for no label; for classification label () int64 or
    probabilities (classes,) float32.
    A loader's batches have `mask_bits` (n, h, ceil(w / 8)) uint8 in place of masks; `to` unpacks them.
    truths: one per image, empty in training: what metrics compare results with (see `ImageDataset.truth`), as numpy
    arrays and plain values, which stay on the host.
    replaced: a message for each damaged image that gave its place to another one in training.
    unread: the images that should be in the batch in evaluation, but cannot be read. There may be no others.
    memory: what holds all tensors, if they lie one behind the other in one piece of memory (bytes,) uint8.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[ImageId]
    targets: list[dict[str, Tensor]]
    truths: list[dict[str, Any]] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    memory: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on a device, by one copy if it lies in one piece, its masks unpacked there."""
        if self.memory is None:
            moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        else:
            moved = replace(self._parts_of(self.memory.to(device, non_blocking=non_blocking)), memory=None)
        for target, (_, width) in zip(moved.targets, moved.image_sizes):
            if "mask_bits" in target:
                target["masks"] = unpack_masks(target.pop("mask_bits"), width)
        return moved

    def pin_memory(self) -> Batch:
        """A copy in one piece of page-locked memory; called by the loader."""
        return self._copy_into(torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=True))

    def share_memory(self) -> Batch:
        """A copy in one piece of memory that other processes can map; each piece takes one file descriptor, of few.

        Raises RuntimeError when there is not enough.
        """
        return self._copy_into(torch.empty(self.nbytes, dtype=torch.uint8).share_memory_())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory, allocated on another stream, from being reused before this stream has come so far."""
        for tensor in self._tensors():
            tensor.record_stream(stream)

    @property
    def nbytes(self) -> int:
        """Bytes of one piece of memory for all tensors."""
        return sum(map(_aligned_bytes, self._tensors()))

    def _copy_into(self, memory: Tensor) -> Batch:
        copied = self._parts_of(memory)
        for part, tensor in zip(copied._tensors(), self._tensors(), strict=True):
            part.copy_(tensor)
        return copied

    def _parts_of(self, memory: Tensor) -> Batch:
        """The batch as it would lie in some memory (nbytes,)."""
        end = 0

        def take(tensor: Tensor) -> Tensor:
            nonlocal end
            start, end = end, end + _aligned_bytes(tensor)
            return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        return replace(self._map(take), memory=memory)

    def _tensors(self) -> list[Tensor]:
        return [self.images, *(value for target in self.targets for value in target.values())]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """function: called with the tensors in the order of `_tensors`."""
        images = function(self.images)
        targets = [{name: function(value) for name, value in target.items()} for target in self.targets]
        return replace(self, images=images, targets=targets, memory=None)


def _aligned_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes, with the padding up to where the next may begin."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def pack_masks(masks: Tensor) -> Tensor:
    """Masks (n, h, w) of zeros and ones, uint8, as bits (n, h, ceil(w / 8)); the first is a byte's highest."""
    return torch.from_numpy(np.packbits(masks.numpy(), axis=-1))


def unpack_masks(bits: Tensor, width: int) -> Tensor:
    """The masks (n, h, w) uint8 that `pack_masks` packed, on the device of the bits."""
    words = bits.to(torch.int64, memory_format=torch.contiguous_format)
    return words.mul_(_SPREAD).bitwise_right_shift_(7).bitwise_and_(_LOWEST).view(torch.uint8)[..., :width]


def collate(
    samples: Sequence[Sample | Unread | PiipError],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    divisor: int,
    mixing: BatchMixing | None,
) -> Batch | PiipError:
    """One batch of transformed samples, padded to a multiple of `divisor`; the first error among them, if any.

    mean, std: RGB in 0..255; they are needed where `mixing` works on normalised pixels.
    """
    for sample in samples:
        if isinstance(sample, PiipError):
            return sample
    unread = [sample for sample in samples if isinstance(sample, Unread)]
    whole = [sample for sample in samples if isinstance(sample, dict)]
    images = [sample["image"] for sample in whole]
    normalised = mixing is not None and mixing.changes_pixels
    pixels = normalise_and_pad(images, mean, std, divisor) if normalised else pad(images, divisor)
    targets = [_packed(sample["target"]) for sample in whole if "target" in sample]
    if mixing is not None:
        pixels, targets = mixing(pixels, targets, whole[0]["key"])
    return Batch(
        images=pixels,
        image_sizes=[(image.shape[1], image.shape[2]) for image in images],
        original_sizes=[sample["original_size"] for sample in whole],
        image_ids=[sample["image_id"] for sample in whole],
        targets=targets,
        truths=[sample["truth"] for sample in whole if "truth" in sample],
        unread=unread,
        replaced=[message for sample in whole for message in sample["replaced"]],
    )


def _packed(target: dict[str, Tensor]) -> dict[str, Tensor]:
    if "masks" not in target:
        return target
    others = {name: value for name, value in target.items() if name != "masks"}
    return others | {"mask_bits": pack_masks(target["masks"])}
