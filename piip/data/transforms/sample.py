"""What the transforms pass on, and where their choices come from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# image: uint8 RGB (3, H, W); image_id; in training target, and replaced, a list of messages.
Sample = dict[str, Any]


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key): the same in any process, in any order, after any resume."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))


@contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Within the block Python's, numpy's and torch's global generators (of the CPU) draw numbers that `rng` decides.

    Libraries such as timm draw from these; afterwards they stand where they stood before.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
