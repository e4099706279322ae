"""The random-number generators of a process: Python's, numpy's, torch's and the current GPU's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed(value: int) -> None:
    """Seeds every generator, those of all GPUs too; `value` may be any integer."""
    _seed_cpu(value)
    torch.manual_seed(value)


def state() -> dict[str, Any]:
    """The generators' states as tensors and plain numbers, loadable by `torch.load(weights_only=True)`."""
    return _cpu_state() | {"cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def restore(saved: dict[str, Any]) -> None:
    """Puts the generators into the states that `state` returned."""
    _restore_cpu(saved)
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"].cpu())


@contextmanager
def preserved() -> Iterator[None]:
    """Whatever the block draws, the generators afterwards stand where they stood before."""
    before = state()
    try:
        yield
    finally:
        restore(before)


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Within the block the CPU's generators draw what `value` decides; afterwards they stand where they stood before.

    No GPU is touched: forked processes, as loaders have them, must not.
    """
    before = _cpu_state()
    _seed_cpu(value)
    try:
        yield
    finally:
        _restore_cpu(before)


def _seed_cpu(value: int) -> None:
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the global generator is what other libraries draw from
    torch.default_generator.manual_seed(value)


def _cpu_state() -> dict[str, Any]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    keys = torch.from_numpy(legacy["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": legacy | {"state": {"key": keys, "pos": int(legacy["state"]["pos"])}},
        "torch": torch.get_rng_state(),
    }


def _restore_cpu(saved: dict[str, Any]) -> None:
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    legacy = saved["numpy"]
    words = {"key": legacy["state"]["key"].numpy().astype(np.uint32), "pos": legacy["state"]["pos"]}
    np.random.set_state(legacy | {"state": words})  # noqa: NPY002
    torch.set_rng_state(saved["torch"].cpu())
