"""What the transforms pass on, and where their choices come from."""

from __future__ import annotations

from typing import Any

import numpy as np

# image: uint8 RGB (3, H, W); image_id; in training target, and replaced, a list of messages.
Sample = dict[str, Any]


def generator(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for every (seed, key): the same in any process, in any order, after any resume."""
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))
