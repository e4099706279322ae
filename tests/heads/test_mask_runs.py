"""Run lengths of pasted masks, against pycocotools on the pixels that `paste_masks` pastes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.heads.mask_rcnn import mask_runs
from piip.heads.mask_rcnn.mask_runs import encode_pasted
from piip.heads.mask_rcnn.masks import paste_masks

SIZE = (90, 120)


def assert_same(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> int:
    """Returns the number of pixels that are set."""
    pixels = paste_masks(probabilities, boxes, size).numpy().astype(np.uint8)
    expected = mask_utils.encode(np.asfortranarray(pixels.transpose(1, 2, 0))) if len(pixels) else []
    assert encode_pasted(probabilities, boxes, size) == expected
    return int(pixels.sum())


def probabilities(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 6, 6, generator=generator) * 3 + 1
    return F.interpolate(coarse, size=28, mode="bicubic")[:, 0].sigmoid()


@pytest.mark.parametrize("seed", range(8))
def test_masks_in_random_boxes_are_encoded_as_they_are_pasted(seed: int) -> None:
    """Wholly or partly inside the image, beside it, larger than it, thinner than a pixel."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(60, 2, generator=generator) * 160 - 20
    sides = torch.rand(60, 2, generator=generator) ** 3 * 250
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    assert assert_same(probabilities(60, seed), boxes, SIZE) > 60 * 100


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 120, 90], [0, 0, 60, 90], [60, 0, 120, 90], [0, 45, 120, 90], [0, 0, 120, 45], [119, 89, 120, 90],
        [30, 0, 90, 90], [0, 20, 120, 70], [-50, -50, 300, 300], [30.5, 20.5, 30.6, 20.6],
        [5, 5, 5, 20], [5, 5, 30, 5], [7, 7, 7, 7], [130, 10, 150, 50], [-40, 10, -5, 50], [10, 95, 50, 99],
        [50, 60, 20, 10],
    ],
)  # fmt: skip
def test_boxes_at_the_borders_and_without_area(box: list[float]) -> None:
    boxes = torch.tensor([box] * 3, dtype=torch.float32)
    assert_same(torch.stack([torch.ones(28, 28), torch.zeros(28, 28), probabilities(1)[0]]), boxes, SIZE)


def test_masks_at_the_threshold_are_cut_alike() -> None:
    """Many pixels are one half, or differ from it by what is lost in rounding."""
    masks = (torch.arange(28) % 2).float().expand(20, 28, 28)
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 60, (20, 2), generator=generator).float()
    assert assert_same(masks, torch.cat([corners, corners + 28 * torch.tensor([1.0, 1.0])], dim=1), SIZE) > 1000
    assert assert_same(masks, torch.cat([corners, corners + 29.7], dim=1), SIZE) > 1000


def test_nothing_found_and_low_precision() -> None:
    assert encode_pasted(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE) == []
    boxes = torch.tensor([[10.0, 10, 80, 70]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert assert_same(probabilities(1), boxes, SIZE)
    assert assert_same(probabilities(1).bfloat16(), boxes, SIZE)


def test_many_masks_are_encoded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_runs, "PASTE_PIXELS", 3 * SIZE[0] * SIZE[1])
    boxes = torch.tensor([[10.0, 10, 80, 70], [0, 0, 120, 90], [50, 50, 200, 60], [5, 5, 5, 9]]).repeat(2, 1)
    assert assert_same(probabilities(8), boxes, SIZE)


@pytest.mark.cuda
def test_masks_pasted_on_a_gpu_leave_it_as_run_lengths() -> None:
    boxes = torch.tensor([[10.0, 10, 80, 70], [0, 0, 120, 90], [50, 50, 200, 60]], device="cuda")
    masks = probabilities(3).cuda()
    pixels = paste_masks(masks, boxes, SIZE).cpu().permute(1, 2, 0).numpy().astype(np.uint8)
    assert encode_pasted(masks, boxes, SIZE) == mask_utils.encode(np.asfortranarray(pixels))
