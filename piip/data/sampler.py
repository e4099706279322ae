"""Which images make up which batch: seeded, divided over processes, and able to start in the middle of an epoch.

Samplers yield keys (epoch, index), so that a loader process knows which random stream a sample belongs to without any
state of its own. They run in the parent process; the number of loader processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from piip.data.transforms.sample import generator
from piip.errors import ConfigError

Key = tuple[int, int]

SHUFFLE_STREAM, SAMPLE_STREAM = 0, 1


class TrainSampler(Sampler[list[Key]]):
    """Batches of one rank for one epoch of shuffled training.

    aspect_ratios: height / width of every image. batch_size: images per optimizer step, over all ranks and accumulation
    steps. Every step takes the next batch_size images of the epoch's shuffle, whatever world and accumulate are, and
    every rank gets the same number of batches; images left over at the end of an epoch are not used in it. Within a
    step the images are sorted by aspect ratio, so that those sharing a batch need little padding.
    Raises ConfigError when batch_size does not divide, or when the images do not fill one step.
    """

    def __init__(
        self,
        *,
        aspect_ratios: NDArray[np.float64],
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % (world * accumulate):
            raise ConfigError(
                f"data.batch_size {batch_size} is not divisible by {world} processes x optim.accumulate {accumulate}; "
                f"set data.batch_size to a multiple of {world * accumulate}"
            )
        if len(aspect_ratios) < batch_size:
            raise ConfigError(
                f"the training data has {len(aspect_ratios)} images, fewer than data.batch_size {batch_size}; "
                f"set data.batch_size to {len(aspect_ratios)} or less"
            )
        self._aspect_ratios = aspect_ratios
        self._batch_size, self._accumulate, self._seed = batch_size, accumulate, seed
        self._rank, self._world = rank, world
        self._epoch = self._start = 0

    def __len__(self) -> int:
        """Batches of a whole epoch: optimizer steps times accumulation steps."""
        return len(self._aspect_ratios) // self._batch_size * self._accumulate

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""
        self._epoch, self._start = epoch, 0

    def set_start(self, iteration: int) -> None:
        """Goes to a batch of the current epoch, counted from 0: the number of batches already trained on."""
        if not 0 <= iteration <= len(self):
            raise ValueError(f"an epoch has {len(self)} batches, cannot start at {iteration}")
        self._start = iteration

    def __iter__(self) -> Iterator[list[Key]]:
        order = generator(self._seed, SHUFFLE_STREAM, self._epoch).permutation(len(self._aspect_ratios))
        per_batch = self._batch_size // (self._world * self._accumulate)
        for iteration in range(self._start, len(self)):
            step, micro = divmod(iteration, self._accumulate)
            images = order[step * self._batch_size : (step + 1) * self._batch_size]
            images = images[np.argsort(self._aspect_ratios[images], kind="stable")]
            first = (micro * self._world + self._rank) * per_batch
            yield [(self._epoch, int(index)) for index in images[first : first + per_batch]]


class EvalSampler(Sampler[list[Key]]):
    """Batches of one rank in evaluation: every image on exactly one rank, in order; ranks may get unequal numbers."""

    def __init__(self, *, images: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        keys = [(0, index) for index in range(rank, images, world)]
        self._batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._batches)
