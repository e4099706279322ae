"""Samples by key: read, transformed, and in training replaced where an image is damaged."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from piip.data.batch import Unread
from piip.data.sampler import SAMPLE_STREAM, Key
from piip.data.sets.base import ImageDataset
from piip.data.transforms.config import TransformsConfig
from piip.data.transforms.sample import Sample, generator
from piip.errors import DataError, PiipError

# Training gives up after so many images in a row that cannot be read: then the disk is at fault, not the images.
_MOST_FAILURES = 20


class Samples(Dataset[Any]):
    """Transformed samples by (epoch, index); in training the next image takes the place of a damaged one.

    In evaluation a damaged image is told by an `Unread`, for its objects count as missed; without transforms images are
    as they are read. Errors are returned, not raised: torch would turn them into tracebacks on the way to the parent
    process.
    """

    def __init__(self, dataset: ImageDataset, transforms: TransformsConfig | None, seed: int, training: bool) -> None:
        self._dataset, self._transforms, self._seed, self._training = dataset, transforms, seed, training

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Key) -> Sample | Unread | PiipError:
        epoch, index = key
        if not self._training:
            return self._evaluated(index)
        rng = generator(self._seed, SAMPLE_STREAM, epoch, index)
        replaced: list[str] = []
        for offset in range(min(len(self._dataset), _MOST_FAILURES)):
            try:
                sample = self._dataset[(index + offset) % len(self._dataset)]
            except DataError as error:
                replaced.append(str(error))
                continue
            assert self._transforms is not None
            return self._transforms.apply(sample | {"key": key, "replaced": replaced}, rng)
        return DataError(f"{len(replaced)} images in a row cannot be read; the first: {replaced[0]}")

    def _evaluated(self, index: int) -> Sample | Unread | PiipError:
        image_id = self._dataset.image_id(index)
        try:
            truth = {
                name: value.numpy() if isinstance(value, Tensor) else value
                for name, value in self._dataset.truth(index).items()
            }
        except PiipError as error:
            return error
        try:
            image = self._dataset.image(index)
        except DataError as error:
            return Unread(image_id, truth, str(error))
        sample: Sample = {"image": image, "image_id": image_id, "truth": truth, "replaced": []}
        if self._transforms is None:
            return sample | {"original_size": tuple(image.shape[-2:])}
        return self._transforms.apply(sample, None)
