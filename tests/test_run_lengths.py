"""Run lengths against pycocotools, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from piip import run_lengths
from piip.run_lengths import compress, encode


def theirs(masks: Tensor) -> list[dict[str, Any]]:
    return mask_utils.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))


def draw(count: int, height: int, width: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(count + height)
    return torch.rand(count, height, width, generator=generator) < share


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (31, 47), (7, 9)])
def test_run_lengths_are_those_of_pycocotools(size: tuple[int, int], share: float) -> None:
    masks = draw(5, *size, share)
    assert encode(masks) == theirs(masks)


def test_long_runs_and_differences_of_either_sign_are_written_in_as_many_characters_as_they_need() -> None:
    """Of one to six characters, at and beside the numbers at which another is needed."""
    height, width = 1000, 1700  # a million and more pixels in a mask
    runs = [n + d for n in (16, 512, 2**14, 2**19) for d in (-1, 0, 1)]
    generator = np.random.default_rng(0)
    masks = torch.zeros(6, width * height, dtype=torch.bool)
    for mask in masks:
        place = 0
        for number, run in enumerate(generator.permutation(runs)[:9].tolist()):
            mask[place : place + run] = number % 2
            place += run
    masks = masks.view(6, width, height).mT
    assert encode(masks) == theirs(masks)


def test_runs_as_long_as_thirty_two_bits_can_say() -> None:
    """Too long to be drawn: the mask's own length is the last run's."""
    size = (2**15, 2**16 - 1)
    places = np.array([3, 2**25 + 3, 2**25 + 4, 2**30 + 7])
    (found,) = compress(np.zeros(4, dtype=np.int64), places, count=1, size=size)
    counts = np.diff([0, *places, size[0] * size[1]]).tolist()
    assert found == mask_utils.frPyObjects({"size": list(size), "counts": counts}, *size)


def test_no_masks_no_run_lengths() -> None:
    assert encode(torch.zeros(0, 5, 6, dtype=torch.bool)) == []


def test_many_masks_are_encoded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = draw(7, 20, 30, 0.4)
    monkeypatch.setattr(run_lengths, "_PIXELS", 3 * 20 * 30)
    assert encode(masks) == theirs(masks)


@pytest.mark.cuda
def test_run_lengths_from_a_gpu_are_the_same() -> None:
    masks = draw(9, 480, 640, 0.5)
    assert encode(masks.cuda()) == theirs(masks)
