"""What the transforms pass on, and where their choices come from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from piip.rng import seeded

# image: uint8 RGB (3, H, W); image_id; in training target, and replaced, a list of messages.
Sample = dict[str, Any]


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key): the same in any process, in any order, after any resume."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))


def drawing_from(rng: np.random.Generator) -> AbstractContextManager[None]:
    """Within the block Python's, numpy's and torch's global generators (of the CPU) draw numbers that `rng` decides.

    Libraries such as timm draw from these; afterwards they stand where they stood before.
    """
    return seeded(int(rng.integers(2**32)))
