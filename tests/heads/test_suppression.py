"""Suppression of whole batches against plain loops and torchvision; the best candidates against a stable sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from piip import host
from piip.heads.mask_rcnn.suppression import best, suppress
from tests.heads.test_boxes import random_boxes


@pytest.fixture(params=["cpu", "device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How it is done on the CPU, and on a device."""
    monkeypatch.setattr(host, "is_host", lambda device: request.param == "cpu")


def listed(found: tuple[Tensor, Tensor]) -> list[list[int]]:
    """The indices that count, per image."""
    index, counts = found
    assert index.dtype == torch.int64
    assert all(not row[count:].any() for row, count in zip(index, counts.tolist(), strict=True))
    return [row[:count].tolist() for row, count in zip(index, counts.tolist(), strict=True)]


def everything(boxes: Tensor) -> Tensor:
    return torch.ones(boxes.shape[:2], dtype=torch.bool)


def naive_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        rivals = [k for k in kept if groups[k] == groups[index]]
        overlaps = [box_iou(boxes[index : index + 1].double(), boxes[k : k + 1].double()).item() for k in rivals]
        if not any(overlap > threshold for overlap in overlaps):
            kept.append(index)
    return kept


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_equals_a_plain_loop_over_each_group(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([random_boxes(120, seed=seed) for seed in range(6)])
    scores = torch.rand(6, 120, generator=generator)
    groups = torch.randint(0, 4, (6, 120), generator=generator)
    expected = [naive_nms(*image, threshold) for image in zip(boxes, scores, groups, strict=True)]
    assert sum(map(len, expected)) < 6 * 120
    settings = {"num_groups": 4, "threshold": threshold}
    assert listed(suppress(boxes, scores, groups, everything(boxes), limit=1000, **settings)) == expected
    found = suppress(boxes, scores, groups, everything(boxes), limit=7, **settings)
    assert listed(found) == [image[:7] for image in expected]


@pytest.mark.usefixtures("place")
def test_no_bit_of_an_images_shifted_boxes_depends_on_its_place_in_the_batch() -> None:
    """Against torchvision's own call on each image's shifted boxes, with many overlaps just at the threshold."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(9, 400, 1, generator=generator) * 30 + 1
    corner = torch.rand(9, 400, 2, generator=generator) * torch.tensor([5.0, 900.0])
    boxes = torch.cat([corner, corner + torch.cat([wide, wide * 0 + 7.1], 2)], 2)
    boxes[:, 200:] = boxes[:, :200] + (boxes[:, :200, 2:] - boxes[:, :200, :2]).repeat(1, 1, 2) * torch.tensor(
        [0.0, 3 / 17, 0, 3 / 17]
    )
    scores, groups = (
        torch.rand(9, 400, generator=generator),
        torch.randint(0, 5, (9, 200), generator=generator).repeat(1, 2),
    )
    found = listed(suppress(boxes, scores, groups, everything(boxes), num_groups=5, threshold=0.7, limit=400))
    for image, kept in enumerate(found):
        shift = groups[image].to(boxes) * (boxes[image].max() + 1)
        assert kept == nms(boxes[image] + shift[:, None], scores[image], 0.7).tolist()


@pytest.mark.usefixtures("place")
def test_suppression_of_many_boxes_agrees_with_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(3000, size=1000)[None], torch.rand(1, 3000, generator=generator)
    groups = torch.randint(0, 80, (1, 3000), generator=generator)
    found = suppress(boxes, scores, groups, everything(boxes), num_groups=80, threshold=0.5, limit=3000)
    assert listed(found) == [batched_nms(boxes[0], scores[0], groups[0], 0.5).tolist()]


@pytest.mark.usefixtures("place")
def test_equal_scores_keep_their_order_and_other_groups_are_left_alone() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(2, 4, 4)
    groups = torch.tensor([1, 0, 1, 0])
    found = suppress(boxes, torch.ones(2, 4), groups, everything(boxes), num_groups=2, threshold=0.5, limit=10)
    assert listed(found) == [[0, 1], [0, 1]]


@pytest.mark.usefixtures("place")
def test_boxes_that_take_no_part_suppress_nothing_and_are_not_kept() -> None:
    boxes = torch.stack([random_boxes(60, seed=seed) for seed in range(3)])
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(0))
    usable = torch.rand(3, 60, generator=torch.Generator().manual_seed(1)) < 0.5
    usable[1] = False
    boxes[~usable] *= 1000  # does not count for the shift either
    groups = torch.zeros(60, dtype=torch.int64)
    found = listed(suppress(boxes, scores, groups, usable, num_groups=1, threshold=0.4, limit=60))
    for image, kept in enumerate(found):
        (places,) = usable[image].nonzero(as_tuple=True)
        alone = naive_nms(boxes[image, places], scores[image, places], groups, 0.4)
        assert kept == places[alone].tolist()


@pytest.mark.parametrize("count", [1, 30, 200])
def test_the_best_are_those_of_a_stable_sort(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 200, generator=generator)
    scores[1] = (scores[1] * 8).round() / 8  # many are equal
    scores[2] = (30 * torch.randn(200, generator=generator)).sigmoid()  # saturated, and tiny ones
    scores[2, ::7] = 0
    values, index = best(scores, count)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(index, expected.indices[:, :count])
    assert torch.equal(values, expected.values[:, :count])
