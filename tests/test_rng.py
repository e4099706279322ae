"""The process's random-number generators: their states travel through a file, and loaders leave GPUs alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from piip import rng


def drawn() -> tuple[list[float], list[float], list[float]]:
    """Gaussians, of which Python's and numpy's generators make two at a time and keep the second."""
    return (
        [random.gauss(0, 1) for _ in range(3)],
        np.random.standard_normal(3).tolist(),  # noqa: NPY002
        torch.randn(3).tolist(),
    )


def test_a_state_that_went_through_a_file_gives_the_same_numbers_again(tmp_path: Path) -> None:
    rng.seed(-5)
    drawn()
    torch.save(rng.state(), tmp_path / "state.pt")
    expected = drawn()
    rng.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert drawn() == expected


def test_a_block_has_numbers_of_its_own_and_changes_none_outside() -> None:
    rng.seed(3)
    expected = drawn(), drawn()
    rng.seed(3)
    first = drawn()
    with rng.seeded(3):
        inside = drawn()
    with rng.preserved():
        drawn()
    assert (first, drawn()) == expected
    assert inside == expected[0]


def test_a_seeded_block_touches_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    for name in ("is_available", "manual_seed_all", "get_rng_state", "set_rng_state", "_lazy_init", "_lazy_call"):
        monkeypatch.setattr(torch.cuda, name, fail)
    with rng.seeded(1):
        drawn()
    with pytest.raises(RuntimeError, match="re-initialize"):
        rng.state()
