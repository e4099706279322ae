"""Samples by key: read, transformed, and replaced in training where an image is damaged."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from piip.data.sampler import SAMPLE_STREAM, Key
from piip.data.sets.base import ImageDataset
from piip.data.transforms.config import TransformsConfig
from piip.data.transforms.sample import Sample, generator
from piip.errors import DataError, PiipError

# Images that cannot be read one after the other before training gives up: then it is the disk, not the image.
_MOST_FAILURES = 20


class Samples(Dataset[Any]):
    """Transformed samples by (epoch, index); in training a damaged image is replaced by the next one.

    Errors are returned, not raised: torch would turn them into tracebacks on the way to the parent process.
    """

    def __init__(self, dataset: ImageDataset, transforms: TransformsConfig, seed: int, training: bool) -> None:
        self._dataset, self._transforms, self._seed, self._training = dataset, transforms, seed, training

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Key) -> Sample | PiipError:
        epoch, index = key
        if not self._training:
            try:
                image = self._dataset.image(index)
            except PiipError as error:
                return error
            sample: Sample = {"image": image, "image_id": self._dataset.image_id(index), "replaced": []}
            return self._transforms.apply(sample, None)

        rng = generator(self._seed, SAMPLE_STREAM, epoch, index)
        replaced: list[str] = []
        for offset in range(min(len(self._dataset), _MOST_FAILURES)):
            try:
                sample = self._dataset[(index + offset) % len(self._dataset)]
            except DataError as error:
                replaced.append(str(error))
                continue
            return self._transforms.apply(sample | {"key": key, "replaced": replaced}, rng)
        return DataError(f"{len(replaced)} images in a row cannot be read; the first: {replaced[0]}")
