"""What transforms take and return, and where their random choices come from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from piip.rng import seeded

# image: uint8 RGB (3, H, W); image_id; target in training and truth in evaluation; replaced, a list of messages.
Sample = dict[str, Any]


class BatchMixing(Protocol):
    """What a recipe does to whole training batches."""

    @property
    def changes_pixels(self) -> bool:
        """Whether images are changed, for which they must be normalised; else only targets are."""

    def __call__(
        self, images: Tensor, targets: list[dict[str, Tensor]], key: tuple[int, int]
    ) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The images (B, 3, H, W) and targets of a batch, changed. key: epoch and index of the first image."""


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key): the same in any process, in any order, after any resume."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))


def drawing_from(rng: np.random.Generator) -> AbstractContextManager[None]:
    """Within the block, `rng` decides what Python's, numpy's and torch's global generators (of the CPU) draw.

    Libraries such as timm draw from these. Their state is restored afterwards.
    """
    return seeded(int(rng.integers(2**32)))
